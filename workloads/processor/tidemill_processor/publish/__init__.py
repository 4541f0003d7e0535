"""Results, anomalies, dead letters and live changes, to Kafka and Redis."""
