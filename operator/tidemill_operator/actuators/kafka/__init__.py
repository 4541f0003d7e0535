"""Kafka: topics, replicas, consumer groups and the log."""
