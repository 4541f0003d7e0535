"""`_dead_letters`: events that could not be counted.

An event that counts nowhere has the aggregation ''. One that was late for an aggregation has its name. Feeds the
topic of dead letters.
"""

from __future__ import annotations

from tidemill_contract.tables.definition import Table, columns, moment

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


_TRAVEL = {
    "epoch": "integer", "partition": "integer", '"offset"': "bigint", "aggregation": "text", "reason": "text",
    "field": "text", "detail": "text", "key": "bytea", "value": "bytea", "value_bytes": "bigint",
    "event_time": "bigint", "windows": "text", "bytes": "bigint",
}  # fmt: skip
"""Columns that are stored, and their types on the way; an array of arrays has to be even, so `windows` go as texts."""


def insert(schema: str) -> str:
    """Store dead letters that are not there yet.

    Parameters, a list each: epoch, partition, offset, aggregation, reason, field, detail, key, value, bytes of
    the value, event time (epoch ms), windows (an array as text), bytes that it counts in `_kept`. Rows:
    partition, number and bytes of what was stored.
    """
    names = ", ".join(_TRAVEL)
    arrays = ", ".join(f"%s::{kind}[]" for kind in _TRAVEL.values())
    return (
        f"WITH stored AS (INSERT INTO {schema}._dead_letters ({names})"
        f" SELECT {names.replace('windows', 'windows::bigint[]')} FROM unnest({arrays}) AS new ({names})"
        " ON CONFLICT DO NOTHING RETURNING partition, bytes)"
        " SELECT partition, count(*), sum(bytes)::bigint FROM stored GROUP BY 1"
    )


def unpublished(schema: str, limit: int) -> str:
    """Lock the next ones to publish.

    Rows: epoch, partition, offset, aggregation, reason, field, detail, key, value, event time (epoch ms), windows.
    """
    return (
        'SELECT epoch, partition, "offset", aggregation, reason, field, detail, key, value, event_time, windows'
        f" FROM {schema}._dead_letters WHERE NOT published"
        f' ORDER BY epoch, partition, "offset" LIMIT {limit}'
        " FOR UPDATE SKIP LOCKED"
    )


def set_published(schema: str) -> str:
    """Parameters: epoch, partition, offset, aggregation."""
    return (
        f"UPDATE {schema}._dead_letters SET published = true"
        ' WHERE epoch = %s AND partition = %s AND "offset" = %s AND aggregation = %s'
    )


def listing(schema: str, *, key_bytes: int, value_bytes: int) -> str:
    """A relation of all of them, with the beginnings of keys and values, and event times that are times."""
    return (
        'SELECT epoch, partition, "offset", aggregation, reason, field, detail,'
        f" substr(key, 1, {key_bytes}) AS key,"
        f" substr(value, 1, {value_bytes}) AS value, substr(value, 1, {value_bytes}) AS value_encoding, value_bytes,"
        " CASE WHEN event_time BETWEEN -62135596800000 AND 253402300799999"
        f" THEN {moment('event_time')} END AS event_time, windows, created_at FROM {schema}._dead_letters"
    )
