"""Formats whose records need a schema: the client of the schema registry, and the readers for each writer's schema."""
