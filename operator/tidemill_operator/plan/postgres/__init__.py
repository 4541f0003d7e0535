"""Plan the Postgres schema of a pipeline as SQL text, and interpret its system tables."""
