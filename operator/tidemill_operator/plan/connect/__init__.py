"""Plan the connectors that Kafka Connect runs for a pipeline."""
