"""Decode envelopes, CSV, and records with the framing of a schema registry."""
