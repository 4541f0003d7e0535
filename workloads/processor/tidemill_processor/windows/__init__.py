"""Reads windows from the tables."""
