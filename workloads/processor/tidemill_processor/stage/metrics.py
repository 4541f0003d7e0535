"""Prometheus metrics of a Python stage. A stage serves one pipeline, whose name is a label of the scrape target."""

from __future__ import annotations

from prometheus_client import Counter, Gauge

OUTCOMES = ("staged", "dropped", "failed", "unread")

STAGE_RECORDS = Counter(
    "tidemill_stage_records_total",
    "Records of the source topic by what happened to them: staged, dropped, failed (a dead letter) or unread (no event,"
    " passed on unchanged). Records that are read again after a failure count again.",
    ("outcome",),
)
STAGE_WRITTEN = Counter("tidemill_stage_written_records_total", "Records written to the stage topic.")
FUNCTION_SECONDS = Counter("tidemill_stage_function_seconds_total", "Time spent with events in the user's function.")
STAGE_LOST = Counter(
    "tidemill_stage_lost_records_total",
    "Records that Kafka deleted before the stage read them. They are counted when the stage starts.",
)
STAGE_LAG = Gauge("tidemill_stage_lag_events", "Records of the source topic that the stage has not committed yet.")


def begin_at_zero() -> None:
    """Export each counter with the value 0. Prometheus notices an increase only if the series existed before it."""
    for outcome in OUTCOMES:
        STAGE_RECORDS.labels(outcome)
