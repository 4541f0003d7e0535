"""Files of events: CSV, NDJSON, JSON arrays and Parquet, with or without gzip."""
