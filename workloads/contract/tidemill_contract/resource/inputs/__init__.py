"""The members of `spec.source` for receiving events: webhooks and MQTT."""
