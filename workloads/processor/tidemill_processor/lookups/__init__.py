"""Reference data: keeps the rows of each lookup in memory, and joins them to batches."""
