"""What a process answers at /metrics."""

from __future__ import annotations

from prometheus_client import CONTENT_TYPE_LATEST, disable_created_metrics, generate_latest

# A counter's birth as a time series of its own doubles what is stored and says nothing that its reset does not.
disable_created_metrics()  # type: ignore[no-untyped-call]

CONTENT_TYPE = CONTENT_TYPE_LATEST


def exposition() -> bytes:
    """All metrics that this process has declared, as Prometheus reads them."""
    return generate_latest()
