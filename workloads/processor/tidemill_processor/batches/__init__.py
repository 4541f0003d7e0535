"""Micro-batches: turn Kafka records into a data frame of valid events, and dead letters for invalid events."""
