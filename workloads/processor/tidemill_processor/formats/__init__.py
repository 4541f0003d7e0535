"""Formats whose records need a schema: the registry that has it, and readers made for each schema of a writer."""
