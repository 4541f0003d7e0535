"""Edits of a resource, and the cases that say what an edit of a field changes."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Document = dict[str, Any]

# What a change is about. A processor's processes are named apart from its replicas: the others see their files change.
TOPIC, CONFIG, TABLE = "topic shop.orders.events", "config orders.json", "table by_country_v1"
PROCESSOR, RESTART, SCALE = "workload orders-processor", "restart orders-processor", "scale orders-processor"
RESULTS = "topic shop.orders.results"
BRIDGE = "workload orders-mqtt"
CONNECTOR = "connector shop.orders.a"
INGEST, API, OWN_API = "workload tidemill-ingest", "workload tidemill-api", "workload orders-api"

# Earlier events stay as they were counted.
RECOUNTED = "aggregation by_country"
# Windows that are stored cannot be turned into others.
NEXT_VERSION = ("create table by_country_v2", "aggregation by_country")

STAGE = "workload orders-stage"
STAGED = {"configMap": "enrich", "file": "enrich.py", "function": "enrich"}
IN_IMAGE = {"file": "/app/enrich.py", "function": "enrich"}

FIRST = "aggregations[0]"


def base() -> Document:
    """A resource in which every part of the spec is there."""
    return {
        "apiVersion": "tidemill.dev/v1alpha1",
        "kind": "AnalyticsPipeline",
        "metadata": {"name": "orders", "namespace": "shop", "uid": "uid-1", "generation": 1},
        "spec": {
            "source": {
                "topic": {"partitions": 3, "config": {"segment.ms": "3600000"}},
                "fields": [
                    {"name": "ts", "type": "timestamp", "required": True},
                    {"name": "sent", "type": "timestamp"},
                    {"name": "country", "type": "string"},
                    {"name": "amount", "type": "number"},
                    {"name": "weight", "type": "number"},
                    {"name": "note", "type": "string"},
                ],
                "key": "country",
                "eventTime": {"field": "ts"},
            },
            "transform": {"derive": [{"name": "gross", "expression": "amount * 2"}]},
            "aggregations": [
                {
                    "name": "by_country",
                    "groupBy": ["country"],
                    "window": {"type": "tumbling", "size": "1h"},
                    "metrics": [
                        {"name": "orders", "function": "count"},
                        {"name": "revenue", "function": "sum", "field": "gross"},
                    ],
                }
            ],
            "anomalies": [
                {
                    "name": "odd",
                    "aggregation": "by_country",
                    "metric": "orders",
                    "detector": {"type": "zscore", "threshold": 4.0, "warmup": 24},
                }
            ],
            "processor": {"replicas": 2},
        },
    }


@dataclass(frozen=True)
class Case:
    """One edit of a field.

    Attributes:
        edit: of the spec.
        changes: what it changes besides the config file; None: it is refused.
        refused: the beginning of the refusal.
        reason: those that the refusal may have.
        before: an edit that the resource had before, where the field needs another one beside it.
    """

    edit: Callable[[Document], Any]
    changes: tuple[str, ...] | None = ()
    refused: str = ""
    reason: tuple[str, ...] = ("NotSupported",)
    before: Callable[[Document], Any] | None = None


def put(path: str, value: Any) -> Callable[[Document], Any]:
    """Sets a member, with the objects on the way; `[0]` is an item of a list."""

    def edit(spec: Document) -> None:
        at: Any = spec
        *way, last = re.findall(r"[A-Za-z]+|\[\d+\]", path)
        for part in way:
            at = at[int(part[1:-1])] if part.startswith("[") else at.setdefault(part, {})
        at[int(last[1:-1]) if last.startswith("[") else last] = value

    return edit


def decimal(place: int) -> Callable[[Document], Any]:
    """Makes a field a decimal."""
    return both(put(f"source.fields[{place}].type", "decimal"), put(f"source.fields[{place}].scale", 2))


def both(*edits: Callable[[Document], Any]) -> Callable[[Document], Any]:
    """One edit after the other."""

    def edit(spec: Document) -> None:
        for one in edits:
            one(spec)

    return edit


def refused(path: str, value: Any, text: str, *, before: Callable[[Document], Any] | None = None) -> Case:
    """What cannot be done to what is there."""
    return Case(put(path, value), None, text, before=before)


def invalid(path: str, value: Any, text: str, *, before: Callable[[Document], Any] | None = None) -> Case:
    """What no pipeline may have."""
    return Case(put(path, value), None, text, reason=("InvalidSpec",), before=before)
