"""Pure: the Postgres schema of a pipeline as SQL text, and what its system tables say."""
