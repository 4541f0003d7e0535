"""Functions for the page of a URL. Tidemill's Python stage calls `enrich`, and Flink calls `page`."""

from __future__ import annotations

from typing import Any


def page(url: str) -> str:
    """Return a URL without its query."""
    return url.partition("?")[0]


def enrich(event: dict[str, Any]) -> dict[str, Any]:
    """Return the event with the page of its URL."""
    return {**event, "page": page(event["url"])}
