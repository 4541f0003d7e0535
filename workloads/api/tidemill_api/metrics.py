"""Prometheus metrics of the API."""

from __future__ import annotations

from prometheus_client import Counter, Gauge

DB_CONNECTIONS = Gauge("db_connections", "Open Postgres connections.")
CACHE_HITS = Counter("cache_hits_total", "Answers found in a cache.", ("operation",))
CACHE_MISSES = Counter("cache_misses_total", "Answers not found in a cache.", ("operation",))
EVENTS_QUERIED = Counter("events_queried_total", "Rows returned to queries.", ("event_type",))
STALE_ANSWERS = Counter("tidemill_stale_answers_total", "Cached answers returned while the database was down.")
SLOW_READERS = Counter("tidemill_slow_readers_total", "Streams that were ended because the client read too slowly.")
LIVE_CONNECTIONS = Gauge("tidemill_live_connections", "Open live connections.", ("transport",))
for _transport in ("websocket", "sse"):
    LIVE_CONNECTIONS.labels(_transport)
LIVE_DROPPED = Counter("tidemill_live_dropped_total", "Live connections that the server ended.", ("reason",))
