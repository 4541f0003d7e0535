"""Tests that alerts and dashboards use existing metrics, and that each metric is used."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import REGISTRY
from prometheus_client.metrics import MetricWrapperBase

from tidemill_api import metrics as api
from tidemill_chassis import metrics
from tidemill_chassis.web import metrics as http_metrics
from tidemill_ingest import metrics as ingest
from tidemill_ingest.mqtt import metrics as mqtt
from tidemill_operator.cluster import telemetry as measures
from tidemill_operator.observer import condition_metrics as condition_measures
from tidemill_operator.observer import metrics as pipeline_measures
from tidemill_processor import metrics as processor

ROOT = Path(__file__).resolve().parents[3]
GROUPS = yaml.safe_load((ROOT / "charts/tidemill/files/alerts.yaml").read_text())["groups"]
ALERTS = [rule for group in GROUPS for rule in group["rules"]]
DASHBOARDS = sorted((ROOT / "charts/tidemill/dashboards").glob("*.json"))
OPERATORS = (measures, condition_measures, pipeline_measures)
WORKLOADS = (metrics, http_metrics, api, ingest, mqtt, processor)
# Metrics of Prometheus itself, and of every Python process.
GENERAL = {"up", "process_resident_memory_bytes", "process_cpu_seconds_total"}
_METRIC = re.compile(r"\b((?:tidemill|http|cache|db|events|anomalies|process)_[a-z_]+|up)(?=[{\[)]| ==| >)")


def _known() -> set[str]:
    declared = {
        id(value) for module in (*WORKLOADS, *OPERATORS) for value in vars(module).values() if _is_metric(value)
    }
    names = {name for name, metric in REGISTRY._names_to_collectors.items() if id(metric) in declared}
    return names | GENERAL


def _is_metric(value: Any) -> bool:
    return isinstance(value, MetricWrapperBase)


def _expressions(dashboard: Path) -> Iterator[str]:
    content = json.loads(dashboard.read_text())
    for panel in content["panels"]:
        yield from (target["expr"] for target in panel.get("targets", ()))


def _unknown(expression: str) -> set[str]:
    named = set(_METRIC.findall(expression))
    assert named, f"{expression} names no metric"
    return named - _known()


def test_alerts_use_existing_metrics() -> None:
    assert [alert["alert"] for alert in ALERTS if _unknown(alert["expr"])] == []


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda path: path.stem)
def test_a_dashboard_uses_existing_metrics_and_its_panels_do_not_overlap(dashboard: Path) -> None:
    assert [text for text in _expressions(dashboard) if _unknown(text)] == []
    panels = [panel["gridPos"] for panel in json.loads(dashboard.read_text())["panels"]]
    cells = [(x, y) for p in panels for x in range(p["x"], p["x"] + p["w"]) for y in range(p["y"], p["y"] + p["h"])]
    assert len(cells) == len(set(cells))


def test_every_metric_is_used_by_a_dashboard_or_an_alert() -> None:
    """Only metrics that explain another metric are exceptions."""
    shown = {name for path in DASHBOARDS for text in _expressions(path) for name in _METRIC.findall(text)}
    watched = {name for alert in ALERTS for name in _METRIC.findall(alert["expr"])}
    bare = {re.sub(r"_(total|bucket|sum|count)$", "", name) for name in shown | watched}
    declared = {value._name for module in WORKLOADS for value in vars(module).values() if _is_metric(value)}
    assert declared - bare == {"tidemill_live_dropped", "tidemill_lookup_rows", "tidemill_lookup_age_seconds"}
