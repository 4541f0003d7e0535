"""Files of events as people have them: CSV, NDJSON, JSON arrays and Parquet, compressed with gzip or not."""
