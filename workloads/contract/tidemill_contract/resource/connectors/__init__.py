"""What `spec.source.connectors` may contain."""
