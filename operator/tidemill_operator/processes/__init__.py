"""Processes on one machine: child processes, locks, free ports, and atomic writes of files."""
