"""Prometheus metrics of HTTP requests to ingest and API."""

from __future__ import annotations

from prometheus_client import Counter, Histogram

_REQUEST_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)

HTTP_REQUESTS = Counter("http_requests_total", "HTTP requests.", ("method", "endpoint", "status_code"))
HTTP_REQUEST_SECONDS = Histogram(
    "http_request_duration_seconds",
    "Time until the last byte of the answer was passed to the connection.",
    ("method", "endpoint"),
    buckets=_REQUEST_SECONDS,
)
