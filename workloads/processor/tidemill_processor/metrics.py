"""Prometheus metrics of a processor."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from prometheus_client import Counter, Gauge, Histogram

from tidemill_contract.events.invalid_events import Reason
from tidemill_contract.runtime import PipelineConfig

_BATCH_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_FRESHNESS_SECONDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1_800, 3_600)
_BATCH_EVENTS = (1, 10, 100, 500, 1_000, 5_000, 10_000, 25_000, 50_000, 100_000)

EVENTS_CONSUMED = Counter("tidemill_events_consumed_total", "Kafka records in committed batches.")
EVENTS_FILTERED = Counter("tidemill_events_filtered_total", "Events that the transform's filter removed.")
DUPLICATES = Counter("tidemill_duplicates_total", "Events left out because an earlier event had the same id.")
EVENTS_LATE = Counter(
    "tidemill_events_late_total", "Events that arrived after their window was closed.", ("aggregation", "policy")
)
DEAD_LETTERS = Counter("tidemill_dead_letters_total", "Dead letters.", ("reason",))
KEPT_BYTES = Gauge("tidemill_kept_bytes", "Bytes of dead letters or anomalies in Postgres.", ("table",))
NOT_KEPT = Gauge(
    "tidemill_not_kept_records",
    "Dead letters or anomalies not stored in full: bare (no value), counted (no row), expired, or evicted.",
    ("table", "why"),
)
LAG = Gauge("tidemill_lag_events", "Records in a partition that are not committed yet.", ("partition",))
FRESHNESS_SECONDS = Histogram(
    "tidemill_freshness_seconds",
    "Age of the oldest record of a batch when the batch was committed.",
    buckets=_FRESHNESS_SECONDS,
)
WATERMARK_TIMESTAMP = Gauge("tidemill_watermark_timestamp_seconds", "The watermark, as a Unix time.")
KEEPER_PASSED = Gauge(
    "tidemill_keeper_pass_timestamp_seconds",
    "Unix time when the keeper started, or last completed a pass (close, scan and publish windows).",
)
BATCH_EVENTS = Histogram("tidemill_batch_events", "Events per batch.", buckets=_BATCH_EVENTS)
BATCH_SECONDS = Histogram(
    "tidemill_batch_seconds", "Time to decode, aggregate and commit a batch.", buckets=_BATCH_SECONDS
)
CLOSINGS = Counter("tidemill_closings_total", "Number of times that windows of an aggregation were closed.")
FENCED = Counter("tidemill_fenced_batches_total", "Batches rolled back because another processor had moved a position.")
ROLLED_BACK = Counter(
    "tidemill_rolled_back_batches_total",
    "Batches rolled back because Postgres failed or refused an event.",
    ("reason",),
)
REBALANCES = Counter("tidemill_rebalances_total", "Changes of the assigned partitions.")
RESULTS_PUBLISHED = Counter("tidemill_results_published_total", "Records written to the output topics.")
KEEPER_FAILURES = Counter(
    "tidemill_keeper_failures_total",
    "Failed attempts to close windows, scan windows for anomalies, or publish windows.",
    ("duty",),
)
HELD_UP = Gauge(
    "tidemill_held_up",
    "Aggregations for which a task (close, scan or publish windows) currently fails.",
    ("duty",),
)
WINDOWS_SKIPPED = Counter(
    "tidemill_windows_skipped_total",
    "Values, windows or records that were skipped because reading or publishing failed.",
    ("duty",),
)
LIVE_PUBLISHED = Counter("tidemill_live_published_total", "Changed rows published to clients that follow live changes.")
ANOMALIES_DETECTED = Counter("anomalies_detected_total", "Anomalies found by the detectors.", ("pipeline", "rule"))

LOOKUP_ROWS = Gauge("tidemill_lookup_rows", "Rows of a lookup in memory.", ("lookup",))
LOOKUP_AGE_SECONDS = Gauge(
    "tidemill_lookup_age_seconds", "Time since a lookup was last read, or 0 before the first time.", ("lookup",)
)
LOOKUP_STALE = Gauge(
    "tidemill_lookup_stale",
    "1 if a lookup was not read yet, has outdated rows, or has unreadable records.",
    ("lookup",),
)


def watch_lookup(name: str, *, rows: Callable[[], float], age: Callable[[], float], stale: Callable[[], float]) -> None:
    """Export the number of rows, the age and the state of a lookup."""
    LOOKUP_STALE.labels(name).set_function(stale)
    LOOKUP_ROWS.labels(name).set_function(rows)
    LOOKUP_AGE_SECONDS.labels(name).set_function(age)


def count_anomalies(pipeline: str, by_rule: Mapping[str, int]) -> None:
    """Count the anomalies of a committed batch or scan."""
    for rule, number in by_rule.items():
        ANOMALIES_DETECTED.labels(pipeline, rule).inc(number)


def init_counters(config: PipelineConfig) -> None:
    """Export each counter with the value 0, before the first increase."""
    for rule in config.spec.anomalies:
        ANOMALIES_DETECTED.labels(config.name, rule.name)
    for aggregation in config.spec.aggregations:
        EVENTS_LATE.labels(aggregation.name, aggregation.late_policy)
    for cause in Reason:
        DEAD_LETTERS.labels(str(cause))
    for reason in ("postgres", "refused"):
        ROLLED_BACK.labels(reason)
