"""The ingest service of a namespace: accepts events over HTTP and writes them to Kafka."""
