"""Sends the events of a file to ingest: in batches that are counted once, at a rate, from where it stopped."""
