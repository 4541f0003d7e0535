"""The web server of ingest and API, and what stands before their routes."""
