"""Writes the body of /metrics."""

from __future__ import annotations

from prometheus_client import CONTENT_TYPE_LATEST, disable_created_metrics, generate_latest

# The `_created` series of counters would double the storage, and Prometheus detects counter resets without them.
disable_created_metrics()  # type: ignore[no-untyped-call]

CONTENT_TYPE = CONTENT_TYPE_LATEST


def exposition() -> bytes:
    """Return all metrics of this process in the text format of Prometheus."""
    return generate_latest()
