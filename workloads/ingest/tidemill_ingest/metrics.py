"""Prometheus metrics of ingest."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

_BATCH_EVENTS = (1, 10, 100, 500, 1_000, 5_000, 10_000, 25_000, 50_000, 100_000)

EVENTS_INGESTED = Counter(
    "tidemill_events_ingested_total",
    "Events received. The outcome is accepted, quarantined, retry or rejected.",
    ("pipeline", "outcome"),
)
INGEST_BYTES = Counter("tidemill_ingest_bytes_total", "Decompressed bytes of events received.", ("pipeline",))
INGEST_BATCH_EVENTS = Histogram("tidemill_ingest_batch_events", "Events in a request.", buckets=_BATCH_EVENTS)
WEBHOOK_REQUESTS = Counter(
    "tidemill_webhook_requests_total",
    "Requests to webhooks. The outcome is verified, ping, refused (a wrong signature) or no_secret.",
    ("pipeline", "webhook", "outcome"),
)
PRODUCER_QUEUE = Gauge(
    "tidemill_producer_queue_messages", "Records in the producer queue that Kafka has not acknowledged yet."
)
