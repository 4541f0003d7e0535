"""The pipeline of orders for tests in a cluster, and its events."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import polars as pl

_BASE_MS = int(datetime(2026, 1, 5, tzinfo=UTC).timestamp() * 1000)
_COUNTRIES = ("NO", "SE", "DK", "FI", "IS", "DE", "NL")


def orders(name: str, namespace: str, **spec: Any) -> dict[str, Any]:
    """Return a pipeline with exact metrics, and with a mean. `spec` replaces members of its spec."""
    fields = {"country": "string", "device": "integer", "amount": "number", "ts": "timestamp"}
    metrics = [
        {"name": "orders", "function": "count"},
        {"name": "revenue", "function": "sum", "field": "amount"},
        {"name": "largest", "function": "max", "field": "amount"},
        {"name": "devices", "function": "sum", "field": "device"},
    ]
    return {
        "apiVersion": "tidemill.dev/v1alpha1",
        "kind": "AnalyticsPipeline",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "source": {
                "topic": {"partitions": 6},
                "fields": [{"name": field, "type": kind, "required": True} for field, kind in fields.items()],
                "key": "device",
                "eventTime": {"field": "ts", "maxDisorder": "1m", "idleTimeout": "10m"},
            },
            "aggregations": [
                {
                    "name": "by_country",
                    "groupBy": ["country"],
                    "window": {"type": "tumbling", "size": "1m", "grace": "10s"},
                    "metrics": metrics,
                    "retention": "3650d",
                },
                {
                    "name": "overall",
                    "groupBy": [],
                    "window": {"type": "hopping", "size": "5m", "hop": "1m"},
                    "metrics": [*metrics, {"name": "mean", "function": "avg", "field": "amount"}],
                    "retention": "3650d",
                },
            ],
            "reclaimPolicy": "Delete",
            "processor": {"flushInterval": "250ms"},
            **spec,
        },
    }


def some_orders(number: int, *, after: int = 0) -> pl.DataFrame:
    """Return `number` events that follow the first `after` events, one each 100 ms of event time."""
    row = pl.int_range(after, after + number, eager=True)
    return pl.DataFrame(
        {
            "country": pl.Series(_COUNTRIES).gather(row % len(_COUNTRIES)),
            "device": row * 7919 % 997,
            "amount": (row * 31 % 1000) / 8,
            "ts": pl.from_epoch(_BASE_MS + 100 * row, time_unit="ms").dt.replace_time_zone("UTC"),
        }
    )
