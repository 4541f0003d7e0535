"""`_dead_letters`: events that count nowhere, or not for one aggregation.

Events that count nowhere, or were late for one aggregation (its name; '' otherwise). Feeds the dead-letter topic.
"""

from __future__ import annotations

from tidemill_contract.tables.definition import Table, columns

TABLE = Table(
    "_dead_letters",
    columns(
        ("epoch", "integer NOT NULL"),
        ("partition", "integer NOT NULL"),
        ("offset", "bigint NOT NULL"),
        ("aggregation", "text NOT NULL DEFAULT ''"),
        ("reason", "text NOT NULL"),
        ("field", "text"),
        ("detail", "text"),
        ("key", "bytea"),
        ("value", "bytea"),
        ("value_bytes", "bigint"),
        ("event_time", "bigint"),
        ("windows", "bigint[]"),
        ("created_at", "timestamptz NOT NULL DEFAULT now()"),
        ("published", "boolean NOT NULL DEFAULT false"),
        # What it counts in `_kept`.
        ("bytes", "bigint"),
    ),
    ('PRIMARY KEY (epoch, partition, "offset", aggregation)',),
    indexes=(
        ("_dead_letters_unpublished", '(epoch, partition, "offset") WHERE NOT published'),
        ("_dead_letters_by_time", '(created_at, epoch, partition, "offset", aggregation)'),
    ),
    writer="SELECT, INSERT, UPDATE (published)",
)
