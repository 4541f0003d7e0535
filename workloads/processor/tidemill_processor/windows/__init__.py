"""Reads whole windows from the tables."""
