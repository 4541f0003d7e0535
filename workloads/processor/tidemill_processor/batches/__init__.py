"""Micro-batches: how Kafka records become a typed frame of valid events, and dead letters of invalid events."""
