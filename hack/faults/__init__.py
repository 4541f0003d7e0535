"""Causes faults one after another on a local platform with three brokers; records health, conditions and counts."""
