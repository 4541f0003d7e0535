"""Publishes results, anomalies and dead letters to Kafka, and live changes to Redis."""
