"""The keeper: a thread that closes windows, scans windows for anomalies and publishes results."""
