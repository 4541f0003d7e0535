"""The actuator for connectors of Kafka Connect."""
