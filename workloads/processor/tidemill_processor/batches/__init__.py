"""Micro-batches: turn Kafka records into a typed frame of valid events, and dead letters for invalid events."""
