"""Compute the desired topics, schema and workloads from a spec and the platform."""
