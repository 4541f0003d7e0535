"""Plan a pipeline's Postgres schema as SQL text, and interpret the schema's system tables."""
