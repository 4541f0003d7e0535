"""Prometheus metrics of circuit breakers and retries, which every workload has.

Each distribution declares its own families in its module `metrics`, so that a process tells none that it does not own.
Labels are bounded: route templates, statuses, names of a spec.
"""

from __future__ import annotations

from prometheus_client import Counter, Gauge

BREAKER_STATE = Gauge(
    "tidemill_breaker_state",
    "Circuit breaker: 0 closed, 1 half open, 2 open; 2 too during trials after a failed one.",
    ("name",),
)
BREAKER_TRANSITIONS = Counter(
    "tidemill_breaker_transitions_total", "Changes of a circuit breaker, by the new state.", ("name", "state")
)
RETRIES = Counter("tidemill_retries_total", "Calls repeated after a failure.", ("name",))
