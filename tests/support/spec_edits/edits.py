"""A resource, edits of its spec, and cases: each defines the effect of an edit."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Document = dict[str, Any]

# Names of changed objects. A processor has three: its workload, its processes and its replicas.
TOPIC, CONFIG, TABLE = "topic shop.orders.events", "config orders.json", "table by_country_v1"
PROCESSOR, RESTART, SCALE = "workload orders-processor", "restart orders-processor", "scale orders-processor"
RESULTS = "topic shop.orders.results"
BRIDGE = "workload orders-mqtt"
CONNECTOR = "connector shop.orders.a"
INGEST, API, OWN_API = "workload tidemill-ingest", "workload tidemill-api", "workload orders-api"

# The windows count earlier events by the former spec.
RECOUNTED = "aggregation by_country"
# Stored windows cannot be converted, so the edit begins a new version.
NEXT_VERSION = ("create table by_country_v2", "aggregation by_country")

STAGE = "workload orders-stage"
STAGED = {"configMap": "enrich", "file": "enrich.py", "function": "enrich"}
IN_IMAGE = {"file": "/app/enrich.py", "function": "enrich"}

FIRST = "aggregations[0]"


def base() -> Document:
    """Return a resource in which every part of the spec is set."""
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
    """An edit of one field, with its effect.

    Attributes:
        edit: changes the spec.
        changes: the changes besides the config file; None if the edit is refused.
        refused: the beginning of the refusal's message.
        reason: the possible reasons of the refusal.
        before: an edit of the resource before, where the field needs other members.
    """

    edit: Callable[[Document], Any]
    changes: tuple[str, ...] | None = ()
    refused: str = ""
    reason: tuple[str, ...] = ("NotSupported",)
    before: Callable[[Document], Any] | None = None


def put(path: str, value: Any) -> Callable[[Document], Any]:
    """Return an edit that sets a member and creates the objects above it. `[0]` is an item of a list."""

    def edit(spec: Document) -> None:
        at: Any = spec
        *way, last = re.findall(r"[A-Za-z]+|\[\d+\]", path)
        for part in way:
            at = at[int(part[1:-1])] if part.startswith("[") else at.setdefault(part, {})
        at[int(last[1:-1]) if last.startswith("[") else last] = value

    return edit


def decimal(place: int) -> Callable[[Document], Any]:
    """Return an edit that makes a field a decimal."""
    return both(put(f"source.fields[{place}].type", "decimal"), put(f"source.fields[{place}].scale", 2))


def both(*edits: Callable[[Document], Any]) -> Callable[[Document], Any]:
    """Return an edit that makes several edits in turn."""

    def edit(spec: Document) -> None:
        for single_edit in edits:
            single_edit(spec)

    return edit


def refused(path: str, value: Any, text: str, *, before: Callable[[Document], Any] | None = None) -> Case:
    """Return the case of an edit that the accepted spec or the stored data forbid."""
    return Case(put(path, value), None, text, before=before)


def invalid(path: str, value: Any, text: str, *, before: Callable[[Document], Any] | None = None) -> Case:
    """Return the case of an edit that no pipeline may have."""
    return Case(put(path, value), None, text, reason=("InvalidSpec",), before=before)
