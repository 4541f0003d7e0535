"""Anomaly detection over closed windows and single events."""
