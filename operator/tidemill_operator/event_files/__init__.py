"""Reads files of events in CSV, NDJSON, JSON or Parquet, optionally compressed with gzip."""
