"""Simulates scaling: a seeded model of partitions and replicas under load, with several policies side by side."""
