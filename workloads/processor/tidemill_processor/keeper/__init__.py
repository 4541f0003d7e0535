"""The keeper: a thread that closes windows, scans them for anomalies and publishes them."""
