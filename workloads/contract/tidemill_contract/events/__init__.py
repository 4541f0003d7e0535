"""Decodes events, and finds the reason why an event is not valid."""
