"""Simulates scaling policies on a seeded model of partitions and replicas under load."""
