"""Queries over windows, anomalies, dead letters and kept events: parameters, SQL and answers."""
