"""Requests with an Idempotency-Key: each of their events is written once."""
