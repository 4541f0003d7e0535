"""Pure: the connectors that Kafka Connect runs for a pipeline, and what their live state means."""
