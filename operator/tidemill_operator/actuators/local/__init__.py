"""Runs a pipeline's workloads on this machine as child processes, and keeps its secrets in files."""
