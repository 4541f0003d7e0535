"""Sends the events of a file to ingest in batches. Each batch is counted once, and a stopped run can be resumed."""
