from __future__ import annotations

from typing import Any

import pytest
from prometheus_client import Counter, Gauge, Histogram

from tidemill_contract import metrics

ALL: dict[str, Any] = {
    name: metric for name, metric in vars(metrics).items() if isinstance(metric, (Counter, Gauge, Histogram))
}


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
        "anomalies_detected_total": (),
    }


@pytest.mark.parametrize("name", sorted(ALL))
def test_conventions(name: str) -> None:
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
    assert not set(metric._labelnames) & {"path", "url", "query", "user", "key", "id", "le", "quantile"}, (
        "unbounded or reserved"
    )
