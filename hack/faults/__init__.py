"""Causes faults on a local platform with three brokers, and checks reports and counts."""
