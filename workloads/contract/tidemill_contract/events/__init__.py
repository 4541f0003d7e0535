"""Decode events, and find out why an event is invalid."""
