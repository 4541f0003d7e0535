"""Prometheus metrics of circuit breakers and retries, common to all workloads."""

from __future__ import annotations

from prometheus_client import Counter, Gauge

BREAKER_STATE = Gauge(
    "tidemill_breaker_state",
    "State of a circuit breaker: 0 closed, 1 half open, 2 open.",
    ("name",),
)
BREAKER_TRANSITIONS = Counter(
    "tidemill_breaker_transitions_total", "Changes of a circuit breaker's state, by the new state.", ("name", "state")
)
RETRIES = Counter("tidemill_retries_total", "Calls that were repeated after a failure.", ("name",))
