"""The rules for `spec.source.connectors`."""
