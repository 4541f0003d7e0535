"""Every Prometheus metric of the workloads. Labels are bounded: route templates, statuses, names of a spec.

A processor serves one pipeline, so its metrics carry no pipeline label: the scrape target tells.
"""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

_REQUEST_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_BATCH_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_BATCH_EVENTS = (1, 10, 100, 500, 1_000, 5_000, 10_000, 25_000, 50_000, 100_000)

# HTTP, ingest and API
HTTP_REQUESTS = Counter("http_requests_total", "HTTP requests.", ("method", "endpoint", "status_code"))
HTTP_REQUEST_SECONDS = Histogram(
    "http_request_duration_seconds",
    "Time until the last byte of an answer was handed over.",
    ("method", "endpoint"),
    buckets=_REQUEST_SECONDS,
)

# API
DB_CONNECTIONS = Gauge("db_connections", "Open Postgres connections.")
CACHE_HITS = Counter("cache_hits_total", "Answers found in a cache.", ("operation",))
CACHE_MISSES = Counter("cache_misses_total", "Answers not found in a cache.", ("operation",))
EVENTS_QUERIED = Counter("events_queried_total", "Rows returned to queries.", ("event_type",))
STALE_ANSWERS = Counter("tidemill_stale_answers_total", "Answers from a cache while the database was away.")
SLOW_READERS = Counter("tidemill_slow_readers_total", "Exports that were ended because their client read too slowly.")
LIVE_CONNECTIONS = Gauge("tidemill_live_connections", "Open live connections.", ("transport",))
LIVE_DROPPED = Counter("tidemill_live_dropped_total", "Live connections closed by us.", ("reason",))

# Ingest
EVENTS_INGESTED = Counter(
    "tidemill_events_ingested_total",
    "Events received; outcome is accepted, quarantined, retry or rejected.",
    ("pipeline", "outcome"),
)
INGEST_BYTES = Counter("tidemill_ingest_bytes_total", "Bytes of events received, decompressed.", ("pipeline",))
INGEST_BATCH_EVENTS = Histogram("tidemill_ingest_batch_events", "Events a request.", buckets=_BATCH_EVENTS)
PRODUCER_QUEUE = Gauge(
    "tidemill_producer_queue_messages", "Messages that the Kafka producer holds, not yet acknowledged."
)

# Processor
EVENTS_CONSUMED = Counter("tidemill_events_consumed_total", "Kafka records whose batch was committed.")
EVENTS_FILTERED = Counter("tidemill_events_filtered_total", "Events that the transform's filter left out.")
EVENTS_LATE = Counter("tidemill_events_late_total", "Events whose window was closed.", ("aggregation", "policy"))
DEAD_LETTERS = Counter("tidemill_dead_letters_total", "Dead letters.", ("reason",))
KEPT_BYTES = Gauge("tidemill_kept_bytes", "What dead letters or anomalies take in Postgres.", ("table",))
NOT_KEPT = Gauge(
    "tidemill_not_kept_records",
    "Dead letters or anomalies that Postgres does not hold: bare (their value), counted, expired, evicted by quota.",
    ("table", "why"),
)
LAG = Gauge("tidemill_lag_events", "Records in a partition that are not committed yet.", ("partition",))
FRESHNESS_SECONDS = Gauge(
    "tidemill_freshness_seconds", "Age of the oldest record of the latest batch when it was committed."
)
WATERMARK_SECONDS = Gauge("tidemill_watermark_seconds", "The watermark, as a Unix time.")
BATCH_EVENTS = Histogram("tidemill_batch_events", "Events a batch.", buckets=_BATCH_EVENTS)
BATCH_SECONDS = Histogram(
    "tidemill_batch_seconds", "Time to decode, aggregate and commit a batch.", buckets=_BATCH_SECONDS
)
CLOSINGS = Counter("tidemill_closings_total", "Times that closed_until of an aggregation was advanced.")
FENCED = Counter(
    "tidemill_fenced_batches_total", "Batches rolled back, because another processor had moved the position."
)
ROLLED_BACK = Counter("tidemill_rolled_back_batches_total", "Batches rolled back for another reason.", ("reason",))
REBALANCES = Counter("tidemill_rebalances_total", "Changes of the assigned partitions.")
RESULTS_PUBLISHED = Counter("tidemill_results_published_total", "Records written to the output topics.")
KEEPER_FAILURES = Counter(
    "tidemill_keeper_failures_total", "Failed attempts to close, scan or publish windows of an aggregation.", ("duty",)
)
HELD_UP = Gauge(
    "tidemill_held_up", "Aggregations of which windows cannot be closed, scanned or published for now.", ("duty",)
)
WINDOWS_SKIPPED = Counter(
    "tidemill_windows_skipped_total",
    "Values, windows or records that could not be read or published and were passed over.",
    ("duty",),
)
LIVE_PUBLISHED = Counter("tidemill_live_published_total", "Changed rows published to live listeners.")
ANOMALIES_DETECTED = Counter("anomalies_detected_total", "Anomalies found by the detectors.")

# Resilience
BREAKER_STATE = Gauge("tidemill_breaker_state", "Circuit breaker: 0 closed, 1 half open, 2 open.", ("name",))
BREAKER_TRANSITIONS = Counter(
    "tidemill_breaker_transitions_total", "Changes of a circuit breaker, by the new state.", ("name", "state")
)
RETRIES = Counter("tidemill_retries_total", "Calls repeated after a failure.", ("name",))
