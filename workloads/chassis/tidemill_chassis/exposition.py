"""The body of /metrics."""

from __future__ import annotations

from prometheus_client import CONTENT_TYPE_LATEST, disable_created_metrics, generate_latest

# A time series for the creation time of each counter would double the storage. Prometheus detects resets without it.
disable_created_metrics()  # type: ignore[no-untyped-call]

CONTENT_TYPE = CONTENT_TYPE_LATEST


def exposition() -> bytes:
    """Return all metrics of this process in the text format of Prometheus."""
    return generate_latest()
