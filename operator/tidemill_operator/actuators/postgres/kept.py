"""Dead letters, anomalies and what detectors know: rows past their retention go, and the oldest beyond a quota.

What waits to be published is left alone: processors store nothing more where that alone fills the quota. A pass takes a
few seconds at most, whatever is due; the rest goes with the next ones.
"""

from __future__ import annotations

import time

from psycopg import sql

from tidemill_operator.actuators.postgres.session import Session
from tidemill_operator.plan.model import KeptRows, Schema

PASS_SECONDS = 5.0
CHUNK_ROWS = 5_000
OPERATOR = -1
"""Our place in `_kept`."""
NEARLY_FULL, MADE_FREE = 64, 8
"""Where less than a 64th of the quota is left, an eighth of it is made free."""
DETECTORS_EVERY = "1 hour"
DETECTORS_KEPT_MS = 90 * 86_400_000
"""What a detector knows of a group whose windows are gone stays for so long at least."""

_ORDER = {
    "_dead_letters": ("created_at", 'created_at, epoch, partition, "offset"'),
    "_anomalies": ("detected_at", "id"),
}


def expire_rows(session: Session, schema: Schema) -> None:
    """Remove what is due, at most for a few seconds. The session acts as the schema's owner."""
    until = time.monotonic() + PASS_SECONDS
    for kept in schema.kept:
        while time.monotonic() < until and _expire(session, schema.name, kept):
            pass
        size = _size(session, schema.name, kept)
        if kept.quota - size < kept.quota // NEARLY_FULL:
            excess = size - (kept.quota - kept.quota // MADE_FREE)
            while excess > 0 and time.monotonic() < until and (gone := _evict(session, schema.name, kept, excess)):
                excess -= gone
    _forget_groups(session, schema.name)


def _expire(session: Session, schema: str, kept: KeptRows) -> bool:
    """Remove some of the oldest rows that are past their retention; whether there may be more."""
    time_column, order = _ORDER[kept.table]
    due = sql.SQL(
        "SELECT ctid FROM (SELECT ctid, published, {} AS at FROM {} ORDER BY " + order + " LIMIT %(chunk)s) o"
        " WHERE published AND at < now() - %(kept)s * interval '1 ms'"
    ).format(sql.Identifier(time_column), sql.Identifier(schema, kept.table))
    rows, _ = _delete(session, schema, kept.table, due, "expired", {"chunk": CHUNK_ROWS, "kept": kept.retention_ms})
    return rows > 0


def _evict(session: Session, schema: str, kept: KeptRows, excess: int) -> int:
    """Remove some of the oldest rows, but not many more bytes than `excess`; how many bytes."""
    _, order = _ORDER[kept.table]
    due = sql.SQL(
        "SELECT ctid FROM (SELECT ctid, sum(bytes) OVER (ORDER BY " + order + ") - bytes AS before"
        " FROM (SELECT *, ctid FROM {} ORDER BY " + order + " LIMIT %(chunk)s) o WHERE published) s"
        " WHERE coalesce(before, 0) < %(excess)s"
    ).format(sql.Identifier(schema, kept.table))
    rows, size = _delete(session, schema, kept.table, due, "evicted", {"chunk": CHUNK_ROWS, "excess": excess})
    return max(size, 1) if rows else 0  # rows of earlier versions count nothing


def _delete(
    session: Session, schema: str, table: str, due: sql.Composed, column: str, parameters: dict[str, int]
) -> tuple[int, int]:
    """Delete what `due` selects and count it; rows and bytes."""
    full = sql.SQL("now()" if column == "evicted" else "NULL::timestamptz")
    statement = sql.SQL(
        "WITH due AS ({due}), gone AS (DELETE FROM {table} t USING due WHERE t.ctid = due.ctid RETURNING t.bytes),"
        " sums AS (SELECT count(*) AS number, coalesce(sum(bytes), 0)::bigint AS size, count(bytes) AS known"
        " FROM gone),"
        " noted AS (INSERT INTO {kept} AS k (kind, place, rows, bytes, {column}, full_at)"
        " SELECT %(table)s, %(place)s, -known, -size, number, {full} FROM sums WHERE number > 0"
        " ON CONFLICT (kind, place) DO UPDATE SET rows = k.rows + EXCLUDED.rows, bytes = k.bytes + EXCLUDED.bytes,"
        " {column} = k.{column} + EXCLUDED.{column}, full_at = coalesce(EXCLUDED.full_at, k.full_at))"
        " SELECT number, size FROM sums"
    ).format(
        due=due,
        table=sql.Identifier(schema, table),
        kept=sql.Identifier(schema, "_kept"),
        column=sql.Identifier(column),
        full=full,
    )
    row = session.connection.execute(statement, {**parameters, "table": table, "place": OPERATOR}).fetchone()
    assert row is not None  # noqa: S101 - sums are always one row
    session.changed += row[0]
    return row[0], row[1]


def _size(session: Session, schema: str, kept: KeptRows) -> int:
    query = sql.SQL("SELECT coalesce(sum(bytes), 0)::bigint FROM {} WHERE kind = %s").format(
        sql.Identifier(schema, "_kept")
    )
    row = session.connection.execute(query, (kept.table,)).fetchone()
    return int(row[0]) if row else 0


def _forget_groups(session: Session, schema: str) -> None:
    """What detectors of windows know of groups whose windows are gone; now and then, as no index serves it."""
    parts = {
        "kept": sql.Identifier(schema, "_kept"),
        "detectors": sql.Identifier(schema, "_detectors"),
        "aggregations": sql.Identifier(schema, "_aggregations"),
    }
    due = sql.SQL(
        "SELECT NOT EXISTS (SELECT FROM {kept} WHERE kind = '_detectors' AND place = %s"
        f" AND full_at >= now() - interval '{DETECTORS_EVERY}')"
    ).format(**parts)
    # Looked at first: an upsert that changes nothing is a write all the same.
    if session.connection.execute(due, (OPERATOR,)).fetchone() != (True,):
        return
    turn = sql.SQL(
        "INSERT INTO {kept} AS k (kind, place, full_at) VALUES ('_detectors', %s, now()) ON CONFLICT (kind, place)"
        f" DO UPDATE SET full_at = now() WHERE k.full_at < now() - interval '{DETECTORS_EVERY}'"
    ).format(**parts)
    if not session.connection.execute(turn, (OPERATOR,)).rowcount:
        return
    # Rows of earlier versions do not say when their group was last there: they count as of now.
    session.write_rows(
        sql.SQL(
            "UPDATE {detectors} d SET seen = ARRAY[0, a.scanned_until] FROM {aggregations} a"
            " WHERE a.id = d.aggregation_id AND d.seen IS NULL AND a.scanned_until IS NOT NULL"
        ).format(**parts)
    )
    session.write_rows(
        sql.SQL(
            "DELETE FROM {detectors} d USING {aggregations} a WHERE a.id = d.aggregation_id"
            " AND d.seen[2] < a.scanned_until - greatest(a.retention_ms, %s)"
        ).format(**parts),
        (DETECTORS_KEPT_MS,),
    )
