"""Formats whose records need a schema: the client of the schema registry, and readers for the schema of each writer."""
