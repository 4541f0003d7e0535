"""What users write in Python: the page of a URL. The Python stage calls `enrich`, and Flink a function of `page`."""

from __future__ import annotations

from typing import Any


def page(url: str) -> str:
    """The path of a URL, without its query."""
    return url.partition("?")[0]


def enrich(event: dict[str, Any]) -> dict[str, Any]:
    """The event with its page."""
    return {**event, "page": page(event["url"])}
