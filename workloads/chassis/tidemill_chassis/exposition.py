"""Writes the body of /metrics."""

from __future__ import annotations

from prometheus_client import CONTENT_TYPE_LATEST, disable_created_metrics, generate_latest

# Prometheus detects counter resets even without `_created` series, which would double the storage of counters.
disable_created_metrics()  # type: ignore[no-untyped-call]

CONTENT_TYPE = CONTENT_TYPE_LATEST


def exposition() -> bytes:
    """Return all metrics of this process in the text format of Prometheus."""
    return generate_latest()
