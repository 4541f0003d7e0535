"""The web server of ingest and API, and the middleware before their routes."""
