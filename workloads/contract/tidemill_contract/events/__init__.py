"""Decodes events, and gives the reason why an event is not valid."""
