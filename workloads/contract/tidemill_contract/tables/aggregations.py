"""`_aggregations`: every version of every aggregation.

Every version of every aggregation. `closed_until`: windows that end by it take no more events. `rev` counts the
batches merged. `scanned_until` / `published_until`: how far detectors and the results topic have come. `layout`
numbers the sets of partial columns that were fed one after another; `fed` says since which one a column is fed, if
not all along.
"""

from __future__ import annotations

from tidemill_contract.tables.definition import Table, columns

TABLE = Table(
    "_aggregations",
    columns(
        ("id", "integer PRIMARY KEY GENERATED ALWAYS AS IDENTITY"),
        ("name", "text NOT NULL"),
        ("version", "integer NOT NULL"),
        ("table_name", "text NOT NULL"),
        ("reader", "text NOT NULL"),
        ("shape", "jsonb NOT NULL"),
        ("partition_days", "integer NOT NULL"),
        ("retention_ms", "bigint NOT NULL"),
        ("closed_until", "bigint"),
        ("rev", "bigint NOT NULL DEFAULT 0"),
        ("scanned_until", "bigint"),
        ("published_until", "bigint"),
        ("late_dead", "bigint NOT NULL DEFAULT 0"),
        ("late_dropped", "bigint NOT NULL DEFAULT 0"),
        ("created_at", "timestamptz NOT NULL DEFAULT now()"),
        ("layout", "bigint NOT NULL DEFAULT 0"),
        ("fed", "jsonb NOT NULL DEFAULT '{}'"),
    ),
    ("UNIQUE (name, version)",),
    storage="fillfactor = 50",
    writer="SELECT, UPDATE (closed_until, rev, scanned_until, published_until, late_dead, late_dropped)",
)
