"""Prometheus metrics of a Python stage."""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client import Counter, Gauge

OUTCOMES = ("staged", "dropped", "failed", "unread")

STAGE_RECORDS = Counter(
    "tidemill_stage_records_total",
    "Records of the source topic by outcome: staged, dropped, failed (a dead letter) or unread (not an event). Records"
    " that are read again after a failure are counted again.",
    ("outcome",),
)
STAGE_WRITTEN = Counter("tidemill_stage_written_records_total", "Records written to the stage topic.")
FUNCTION_SECONDS = Counter("tidemill_stage_function_seconds_total", "Time spent with events in the user's function.")
STAGE_LOST = Counter(
    "tidemill_stage_lost_records_total",
    "Records that Kafka deleted before the stage read them, counted when the stage starts.",
)
STAGE_ENDED = Counter(
    "tidemill_stage_ended_calls_total",
    "Calls of the user's function that took longer than the timeout or ended the worker process.",
)
STAGE_LAG = Gauge("tidemill_stage_lag_events", "Records of the source topic that the stage has not committed yet.")

_WRITTEN, _SECONDS = STAGE_WRITTEN._name, FUNCTION_SECONDS._name
_counts = dict.fromkeys((*OUTCOMES, _WRITTEN, _SECONDS), 0.0)


def init_counters() -> None:
    """Export each counter with the value 0, before the first increase."""
    for outcome in OUTCOMES:
        STAGE_RECORDS.labels(outcome)


def count_record(outcome: str, written: int, seconds: float) -> None:
    """Count a record in the counters of the worker process."""
    _counts[outcome] += 1
    _counts[_WRITTEN] += written
    _counts[_SECONDS] += seconds


def totals() -> dict[str, float]:
    """Return the values of the worker's counters."""
    return {STAGE_LOST._name: STAGE_LOST._value.get(), **_counts}


def add_difference(before: Mapping[str, float], now: Mapping[str, float]) -> None:
    """Increase the counters by the difference between two reports of a worker."""
    plain = {metric._name: metric for metric in (STAGE_WRITTEN, FUNCTION_SECONDS, STAGE_LOST)}
    for name, value in now.items():
        counter = plain.get(name) or STAGE_RECORDS.labels(name)
        counter.inc(max(0.0, value - before.get(name, 0.0)))
