"""Receives events from services that sign their requests with a shared secret."""
