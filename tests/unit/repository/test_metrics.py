"""Names, labels and owners of the metrics."""

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


def test_the_documented_names_and_labels() -> None:
    found = {_name(metric): metric._labelnames for metric in ALL.values() if not metric._name.startswith("tidemill_")}
    assert found == {
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
    assert metric._documentation.endswith("."), "a help text is a sentence"
    if isinstance(metric, Histogram):
        assert metric._name.endswith(("_seconds", "_events", "_bytes")), "a histogram's name ends in its unit"
        bounds = metric._kwargs["buckets"]
        assert list(bounds) == sorted(set(bounds))
    if isinstance(metric, Gauge):
        assert not metric._name.endswith(("_total", "_count", "_sum", "_bucket")), (
            "reserved for counters and histograms"
        )
        is_time = "Unix time" in metric._documentation
        assert metric._name.endswith("_timestamp_seconds") == is_time, "a moment is named as one, a duration is not"
    assert not set(metric._labelnames) & {"path", "url", "query", "user", "key", "id", "le", "quantile"}, (
        "unbounded or reserved"
    )


def test_a_family_is_declared_once() -> None:
    assert len(ALL) == sum(len(_families(module)) for module in MODULES.values())


@pytest.mark.parametrize("module", OWNED)
def test_a_process_tells_only_what_it_owns(module: str) -> None:
    """Imported alone, as its process does."""
    code = f"import {module}; from prometheus_client import REGISTRY; print(*(f.name for f in REGISTRY.collect()))"
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    told = {name for name in run.stdout.split() if not name.startswith(GENERAL)}
    assert told == {name for owned in OWNED[module] for name in _families(owned)}


def test_nothing_is_told_of_when_a_series_was_created() -> None:
    measures.DECISIONS.labels("any").inc()
    assert b"_created" not in exposition()


def test_what_can_be_counted_begins_at_zero() -> None:
    """An anomaly, a late event or a dead letter is an increase when it is the first one."""
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
    processor.begin_at_zero(PipelineConfig(namespace="ns", name="begins", generation=1, spec=spec, aggregations=()))
    text = exposition().decode()
    assert 'anomalies_detected_total{pipeline="begins",rule="jump"} 0.0' in text
    assert 'tidemill_events_late_total{aggregation="all",policy="drop"} 0.0' in text
    assert 'tidemill_dead_letters_total{reason="mistyped"} 0.0' in text
    processor.count_anomalies("begins", {"jump": 2})
    assert 'anomalies_detected_total{pipeline="begins",rule="jump"} 2.0' in exposition().decode()
