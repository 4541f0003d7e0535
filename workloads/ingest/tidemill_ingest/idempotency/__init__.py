"""Handles requests with an Idempotency-Key. If such a request is repeated, its events are still written only once."""
