"""Connectors of Kafka Connect, changed through its REST interface."""
