"""Pure: the Postgres schema of a pipeline, as SQL text, and the interpretation of its system tables."""
