"""Actuators for topics, replicas, consumer groups and offsets of Kafka."""
