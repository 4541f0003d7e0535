"""Kafka → windows → Postgres: the stream processor of one pipeline."""
