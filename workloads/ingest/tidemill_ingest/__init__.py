"""HTTP → Kafka: the ingest service of a namespace."""
