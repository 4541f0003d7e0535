"""`_offsets` and `_lost`: where readers stand in the source topic, and what they could not read."""

from __future__ import annotations

from tidemill_contract.tables.definition import Table, columns

TABLE = Table(
    "_offsets",
    columns(
        ("reader", "text NOT NULL"),
        ("partition", "integer NOT NULL"),
        ("topic_id", "text"),
        ("former_topic_ids", "text[] NOT NULL DEFAULT '{}'"),
        ("epoch", "integer NOT NULL DEFAULT 0"),
        ("next_offset", "bigint"),
        ("max_event_time", "bigint"),
        ("suspects", "bigint[] NOT NULL DEFAULT '{}'"),
        ("last_event_at", "timestamptz"),
        ("end_confirmed_at", "timestamptz"),
        # Of the last batch: from its oldest record's arrival in Kafka to its commit.
        ("freshness_ms", "bigint"),
        ("consumed", "bigint NOT NULL DEFAULT 0"),
        ("filtered", "bigint NOT NULL DEFAULT 0"),
        ("invalid", "bigint NOT NULL DEFAULT 0"),
        ("feeds", "integer[] NOT NULL DEFAULT '{}'"),
    ),
    ("PRIMARY KEY (reader, partition)",),
    storage="fillfactor = 50",
    writer="SELECT, UPDATE",
)
"""One row a source partition, made before Kafka's partition. `next_offset` moves only in the transaction that stores
the rows of the events before it. `suspects` are event times that jumped too far to be believed yet. `feeds` (of
`live`) are versions, by id, that its events count for besides those of the spec: a replay has filled them so far.
`former_topic_ids` are those of topics of the name that were deleted: a broker that lags may still answer with
one.
"""

LOST = Table(
    "_lost",
    columns(
        ("reader", "text NOT NULL"),
        ("partition", "integer NOT NULL"),
        ("epoch", "integer NOT NULL"),
        ("from_offset", "bigint NOT NULL"),
        ("to_offset", "bigint"),
        ("reason", "text NOT NULL"),
        ("noticed_at", "timestamptz NOT NULL DEFAULT now()"),
    ),
    ("PRIMARY KEY (reader, partition, epoch, from_offset)",),
    writer="SELECT, INSERT",
)
"""Ranges of offsets that Kafka had thrown away before they were read."""
