"""The operator's process in a cluster."""
