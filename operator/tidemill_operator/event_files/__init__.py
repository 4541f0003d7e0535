"""Files of events that users have: CSV, NDJSON, JSON arrays and Parquet, with or without gzip."""
