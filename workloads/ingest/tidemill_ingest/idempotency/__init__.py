"""Handles requests with an Idempotency-Key.

The events of a repeated request with an Idempotency-Key are written only once.
"""
