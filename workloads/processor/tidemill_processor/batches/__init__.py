"""Micro-batches of valid events and dead letters, made from Kafka records."""
