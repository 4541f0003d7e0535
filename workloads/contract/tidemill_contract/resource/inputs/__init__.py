"""The members of `spec.source` through which Tidemill receives events itself: webhooks and MQTT."""
