"""Pure: the Postgres schema of a pipeline, as text, and what its system tables mean."""
