"""Plan a pipeline's Postgres schema as SQL text, and interpret what Postgres' catalogs say about it."""
