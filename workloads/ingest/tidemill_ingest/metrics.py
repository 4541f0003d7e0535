"""Prometheus metrics of ingest."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

_BATCH_EVENTS = (1, 10, 100, 500, 1_000, 5_000, 10_000, 25_000, 50_000, 100_000)

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
