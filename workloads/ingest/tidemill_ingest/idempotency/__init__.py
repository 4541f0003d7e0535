"""Handles requests with an Idempotency-Key. Each of their events is written once."""
