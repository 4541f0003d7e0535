"""Tests of the metrics: their names and labels, the processes that export them, and their first values."""

from __future__ import annotations

import subprocess
import sys
from types import ModuleType
from typing import Any

import pytest
from prometheus_client import Counter, Gauge, Histogram

from tidemill_api import metrics as api
from tidemill_chassis import metrics
from tidemill_chassis.exposition import exposition
from tidemill_chassis.web import metrics as http_metrics
from tidemill_contract.resource.spec import PipelineSpec
from tidemill_contract.runtime import PipelineConfig
from tidemill_ingest import metrics as ingest
from tidemill_ingest.mqtt import metrics as mqtt
from tidemill_operator.cluster import telemetry as measures
from tidemill_operator.observer import condition_metrics as condition_measures
from tidemill_processor import metrics as processor

MODULES: dict[str, ModuleType] = {
    module.__name__: module
    for module in (metrics, http_metrics, api, ingest, mqtt, processor, measures, condition_measures)
}
OWNED = {
    "tidemill_api.app": (metrics, http_metrics, api),
    "tidemill_ingest.app": (metrics, http_metrics, ingest),
    "tidemill_ingest.mqtt.__main__": (metrics, mqtt),
    "tidemill_processor.__main__": (metrics, processor),
}
GENERAL = ("process_", "python_")


def _families(module: ModuleType) -> dict[str, Any]:
    return {metric._name: metric for metric in vars(module).values() if isinstance(metric, (Counter, Gauge, Histogram))}


ALL = {name: metric for module in MODULES.values() for name, metric in _families(module).items()}


def _name(metric: Any) -> str:
    return metric._name + ("_total" if isinstance(metric, Counter) else "")


def test_metrics_without_prefix_have_the_required_names_and_labels() -> None:
    labels = {_name(metric): metric._labelnames for metric in ALL.values() if not metric._name.startswith("tidemill_")}
    assert labels == {
        "http_requests_total": ("method", "endpoint", "status_code"),
        "http_request_duration_seconds": ("method", "endpoint"),
        "db_connections": (),
        "cache_hits_total": ("operation",),
        "cache_misses_total": ("operation",),
        "events_queried_total": ("event_type",),
        "anomalies_detected_total": ("pipeline", "rule"),
    }


@pytest.mark.parametrize("name", sorted(ALL))
def test_metrics_follow_the_conventions_of_prometheus(name: str) -> None:
    metric = ALL[name]
    assert metric._documentation.endswith("."), "the help text is not a sentence"
    if isinstance(metric, Histogram):
        assert metric._name.endswith(("_seconds", "_events", "_bytes")), "the histogram's name does not end with a unit"
        bounds = metric._kwargs["buckets"]
        assert list(bounds) == sorted(set(bounds))
    if isinstance(metric, Gauge):
        assert not metric._name.endswith(("_total", "_count", "_sum", "_bucket")), (
            "the suffix is reserved for counters and histograms"
        )
        is_time = "Unix time" in metric._documentation
        assert metric._name.endswith("_timestamp_seconds") == is_time, "only times end with _timestamp_seconds"
    assert not set(metric._labelnames) & {"path", "url", "query", "user", "key", "id", "le", "quantile"}, (
        "a label is unbounded or reserved"
    )


def test_each_metric_family_is_declared_once() -> None:
    assert len(ALL) == sum(len(_families(module)) for module in MODULES.values())


@pytest.mark.parametrize("module", OWNED)
def test_a_process_exports_exactly_its_metrics(module: str) -> None:
    """A new process imports only the module of the program."""
    code = f"import {module}; from prometheus_client import REGISTRY; print(*(f.name for f in REGISTRY.collect()))"
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    exported = {name for name in run.stdout.split() if not name.startswith(GENERAL)}
    assert exported == {name for owned in OWNED[module] for name in _families(owned)}


def test_no_creation_time_of_a_series_is_exported() -> None:
    measures.DECISIONS.labels("any").inc()
    assert b"_created" not in exposition()


def test_counters_of_a_pipeline_begin_at_zero() -> None:
    """Without a zero, `increase()` would miss the first anomaly, late event or dead letter."""
    spec = PipelineSpec.model_validate(
        {
            "source": {
                "fields": [{"name": "ts", "type": "timestamp", "required": True}, {"name": "n", "type": "number"}],
                "eventTime": {"field": "ts"},
            },
            "aggregations": [
                {
                    "name": "all",
                    "window": {"type": "tumbling", "size": "1m"},
                    "latePolicy": "drop",
                    "metrics": [{"name": "events", "function": "count"}],
                }
            ],
            "anomalies": [
                {"name": "jump", "aggregation": "all", "metric": "events", "detector": {"type": "zscore"}},
            ],
        }
    )
    processor.init_counters(PipelineConfig(namespace="ns", name="begins", generation=1, spec=spec, aggregations=()))
    text = exposition().decode()
    assert 'anomalies_detected_total{pipeline="begins",rule="jump"} 0.0' in text
    assert 'tidemill_events_late_total{aggregation="all",policy="drop"} 0.0' in text
    assert 'tidemill_dead_letters_total{reason="mistyped"} 0.0' in text
    processor.count_anomalies("begins", {"jump": 2})
    assert 'anomalies_detected_total{pipeline="begins",rule="jump"} 2.0' in exposition().decode()
