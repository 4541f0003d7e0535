"""Scaling tried out: a seeded model of partitions and replicas under load shapes, and policies side by side."""
