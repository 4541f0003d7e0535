"""`_aggregations`: a row for each version of each aggregation.

`closed_until` is the event time up to which windows are closed. `rev` is the number of merged batches. `layout` is a
number that grows when metric columns are added or removed. `fed` is the JSON of `FillHistory.columns_json`.

`ids` is the value of the column `reader` in `_dedupe` for the version's event ids. If `ids` is null, this value is the
version's `reader`. Each start of a replay creates a new value of `ids`. When the replay ends, `reader` becomes `live`,
but `ids` does not change. A new version for live processors takes `ids` from the previous version.
"""

from __future__ import annotations

from typing import Literal

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
        ("ids", "text"),
    ),
    ("UNIQUE (name, version)",),
    storage="fillfactor = 50",
    writer_privileges="SELECT, UPDATE (closed_until, rev, scanned_until, published_until, late_dead, late_dropped)",
)

DEDUPE_READER = "coalesce(ids, reader)"
"""SQL that returns a version's value of `_dedupe.reader` from the row in `_aggregations`."""


def versions(schema: str) -> str:
    """Select all versions, in the order of their ids.

    Columns: name, `reader`, `reader` in `_dedupe`, version, id, table, days per time partition, `layout`, `fed`.
    """
    return (
        f"SELECT name, reader, {DEDUPE_READER}, version, id, table_name, partition_days, layout, fed"
        f" FROM {schema}._aggregations ORDER BY id"
    )


def closed_until(schema: str) -> str:
    """Select the id of each version, and the time (epoch ms) up to which windows are closed.

    Columns: id, time (epoch ms).
    """
    return f"SELECT id, closed_until FROM {schema}._aggregations"


def close(schema: str) -> str:
    """Close windows up to a time (epoch ms), unless later windows are already closed.

    Parameters: time (epoch ms), id, time again.
    """
    return (
        f"UPDATE {schema}._aggregations SET closed_until = %s"
        " WHERE id = %s AND (closed_until IS NULL OR closed_until < %s)"
    )


def count_batch(schema: str) -> str:
    """Count a merged batch. Return the new `rev`.

    Parameter: id. Column: the new `rev`.
    """
    return f"UPDATE {schema}._aggregations SET rev = rev + 1 WHERE id = %s RETURNING rev"


def count_late(schema: str, column: Literal["late_dead", "late_dropped"]) -> str:
    """Increase a version's number of late events.

    Parameters: increase, id. Column: the version's retention (ms).
    """
    return f"UPDATE {schema}._aggregations SET {column} = {column} + %s WHERE id = %s RETURNING retention_ms"


def lock_scan(schema: str) -> str:
    """Select a time (epoch ms), and try to lock the scan. Detectors have scanned windows up to this time.

    Parameters: name of the lock, id. Columns: time (epoch ms), whether the transaction got the lock.
    """
    return (
        f"SELECT scanned_until, pg_try_advisory_xact_lock(hashtext(%s), id) FROM {schema}._aggregations WHERE id = %s"
    )


def set_scanned_until(schema: str) -> str:
    """Store the time (epoch ms) up to which detectors have scanned windows.

    Parameters: time (epoch ms), id.
    """
    return f"UPDATE {schema}._aggregations SET scanned_until = %s WHERE id = %s"


def published_until(schema: str) -> str:
    """Select the time (epoch ms) up to which windows were published.

    Parameter: id. Column: time (epoch ms).
    """
    return f"SELECT published_until FROM {schema}._aggregations WHERE id = %s"


def set_published_until(schema: str) -> str:
    """Store the time (epoch ms) up to which windows were published.

    Parameters: time (epoch ms), id.
    """
    return f"UPDATE {schema}._aggregations SET published_until = %s WHERE id = %s"


def progress(schema: str) -> str:
    """Select the progress and the numbers of late events of all versions.

    Columns: name, version, rev, `closed_until`, `scanned_until` and `published_until` (all three in epoch ms), number
    of late events that became dead letters, number of late events that were dropped.
    """
    return (
        "SELECT name, version, rev, closed_until, scanned_until, published_until, late_dead, late_dropped"
        f" FROM {schema}._aggregations"
    )


# Read columns through `to_jsonb`. If an older schema lacks a column, the result is null.
_FILL_HISTORY = "to_jsonb(a) -> 'layout', to_jsonb(a) -> 'fed'"


def state(schema: str) -> str:
    """Select the state of a version. The result of a query can change only if the state changes.

    Parameters: name, version. Columns: identity of the row (new after the version is created again), `rev`,
    `closed_until`, `watermark`, `layout`, `fed`.
    """
    return (
        f"SELECT a.id || '@' || extract(epoch FROM a.created_at), a.rev, a.closed_until, r.watermark, {_FILL_HISTORY}"
        f" FROM {schema}._aggregations AS a LEFT JOIN {schema}._readers AS r ON r.reader = a.reader"
        " WHERE a.name = %s AND a.version = %s"
    )


def states(schema: str) -> str:
    """Select the states of all versions.

    Parameter: the schema's name, without quotes. Columns: name, version, the table's oid, id, `rev`,
    `closed_until`, `watermark`, `layout`, `fed`.
    """
    return (
        "SELECT a.name, a.version, to_regclass(format('%%I.%%I', %s::text, a.table_name))::oid::bigint,"
        f" a.id, a.rev, a.closed_until, r.watermark, {_FILL_HISTORY} FROM {schema}._aggregations AS a"
        f" LEFT JOIN {schema}._readers AS r ON r.reader = a.reader"
    )
