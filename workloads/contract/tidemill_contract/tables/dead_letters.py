"""`_dead_letters`: events that could not be counted. Processors publish each row to the topic of dead letters.

If the event was late for an aggregation, `aggregation` is its name. Otherwise, `aggregation` is empty.
"""

from __future__ import annotations

from tidemill_contract.tables.definition import ELEMENT, SHOWN_ELEMENT, Table, columns, from_ms

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
        # `bytes` is the row's size, which counts towards the quota of stored dead letters.
        ("bytes", "bigint"),
        ELEMENT,
    ),
    ('PRIMARY KEY (epoch, partition, "offset", aggregation, element)',),
    indexes=(
        ("_dead_letters_unpublished", '(epoch, partition, "offset") WHERE NOT published'),
        ("_dead_letters_by_time", '(created_at, epoch, partition, "offset", aggregation)'),
    ),
    writer_privileges="SELECT, INSERT, UPDATE (published)",
    added_key_columns=("element",),
)


_INSERT_TYPES = {
    "epoch": "integer", "partition": "integer", '"offset"': "bigint", "element": "integer", "aggregation": "text",
    "reason": "text", "field": "text", "detail": "text", "key": "bytea", "value": "bytea", "value_bytes": "bigint",
    "event_time": "bigint", "windows": "text", "bytes": "bigint",
}  # fmt: skip
"""The stored columns, and the types of their parameters. `windows` are sent as texts, because Postgres has no arrays of
arrays with different lengths."""


def insert(schema: str) -> str:
    """Store dead letters, and return the number and the size of new rows by partition.

    Each parameter is a list with a value for each dead letter.

    Columns: partition, number of new rows, size of new rows in bytes.
    """
    names = ", ".join(_INSERT_TYPES)
    arrays = ", ".join(f"%s::{kind}[]" for kind in _INSERT_TYPES.values())
    return (
        f"WITH stored AS (INSERT INTO {schema}._dead_letters ({names})"
        f" SELECT {names.replace('windows', 'windows::bigint[]')} FROM unnest({arrays}) AS new ({names})"
        " ON CONFLICT DO NOTHING RETURNING partition, bytes)"
        " SELECT partition, count(*), sum(bytes)::bigint FROM stored GROUP BY 1"
    )


def unpublished(schema: str, limit: int) -> str:
    """Select and lock the next dead letters to publish.

    Columns: epoch, partition, offset, element, aggregation, reason, field, detail, key, value, event time (epoch ms),
    windows.
    """
    return (
        'SELECT epoch, partition, "offset", element, aggregation, reason, field, detail, key, value, event_time,'
        f" windows FROM {schema}._dead_letters WHERE NOT published"
        f' ORDER BY epoch, partition, "offset" LIMIT {limit}'
        " FOR UPDATE SKIP LOCKED"
    )


def set_published(schema: str) -> str:
    """Mark a dead letter as published.

    Parameters: epoch, partition, offset, element, aggregation.
    """
    return (
        f"UPDATE {schema}._dead_letters SET published = true"
        ' WHERE epoch = %s AND partition = %s AND "offset" = %s AND element = %s AND aggregation = %s'
    )


def listing(schema: str, *, key_bytes: int, value_bytes: int) -> str:
    """Select all dead letters, with truncated keys and values."""
    return (
        f'SELECT epoch, partition, "offset", {SHOWN_ELEMENT}, aggregation, reason, field, detail,'
        f" substr(key, 1, {key_bytes}) AS key,"
        f" substr(value, 1, {value_bytes}) AS value, substr(value, 1, {value_bytes}) AS value_encoding, value_bytes,"
        " CASE WHEN event_time BETWEEN -62135596800000 AND 253402300799999"
        f" THEN {from_ms('event_time')} END AS event_time, windows, created_at FROM {schema}._dead_letters"
    )
