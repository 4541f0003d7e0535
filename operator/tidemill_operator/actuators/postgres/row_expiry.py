"""Delete dead letters, anomalies and detector states past their retention, and the oldest rows beyond a quota.

Rows that processors have not published to Kafka yet are never deleted.
"""

from __future__ import annotations

import time

from psycopg import sql

from tidemill_operator.actuators.postgres.session import Session
from tidemill_operator.plan.model import Schema, TableRetention

PASS_SECONDS = 5.0
CHUNK_ROWS = 5_000
OPERATOR = -1
"""The operator's rows in the table `_kept` have this value in the column `place`."""
NEARLY_FULL, MADE_FREE = 64, 8
"""If less than 1/64 of a quota is free, rows are deleted until 1/8 is free."""
DETECTORS_EVERY = "1 hour"
DETECTORS_KEPT_MS = 90 * 86_400_000
"""The minimum retention of a detector's state after a group's last window, in ms."""

_ORDER = {
    "_dead_letters": ("created_at", 'created_at, epoch, partition, "offset"'),
    "_anomalies": ("detected_at", "id"),
}


def expire_rows(session: Session, schema: Schema) -> None:
    """Delete expired rows, and start no further deletion of rows after `PASS_SECONDS`.

    The session must act as the owner of the schema.
    """
    deadline = time.monotonic() + PASS_SECONDS
    for retention in schema.retentions:
        while time.monotonic() < deadline and _expire(session, schema.name, retention):
            pass
        _enforce_quota(session, schema.name, retention, deadline)
    _forget_groups(session, schema.name)


def _enforce_quota(session: Session, schema: str, retention: TableRetention, deadline: float) -> None:
    size = _size(session, schema, retention)
    if retention.quota - size >= retention.quota // NEARLY_FULL:
        return
    excess = size - (retention.quota - retention.quota // MADE_FREE)
    while excess > 0 and time.monotonic() < deadline and (freed := _evict(session, schema, retention, excess)):
        excess -= freed


def _expire(session: Session, schema: str, retention: TableRetention) -> bool:
    time_column, order = _ORDER[retention.table]
    due = sql.SQL(
        "SELECT ctid FROM (SELECT ctid, published, {} AS at FROM {} ORDER BY " + order + " LIMIT %(chunk)s) o"
        " WHERE published AND at < now() - %(kept)s * interval '1 ms'"
    ).format(sql.Identifier(time_column), sql.Identifier(schema, retention.table))
    rows, _ = _delete(
        session, schema, retention.table, due, "expired", {"chunk": CHUNK_ROWS, "kept": retention.retention_ms}
    )
    return rows > 0


def _evict(session: Session, schema: str, retention: TableRetention, excess: int) -> int:
    _, order = _ORDER[retention.table]
    due = sql.SQL(
        "SELECT ctid FROM (SELECT ctid, sum(bytes) OVER (ORDER BY " + order + ") - bytes AS before"
        " FROM (SELECT *, ctid FROM {} ORDER BY " + order + " LIMIT %(chunk)s) o WHERE published) s"
        " WHERE coalesce(before, 0) < %(excess)s"
    ).format(sql.Identifier(schema, retention.table))
    rows, size = _delete(session, schema, retention.table, due, "evicted", {"chunk": CHUNK_ROWS, "excess": excess})
    # Rows that earlier versions of Tidemill wrote have no size. Return at least 1, because 0 ends the caller's loop.
    return max(size, 1) if rows else 0


def _delete(
    session: Session, schema: str, table: str, due: sql.Composed, column: str, parameters: dict[str, int]
) -> tuple[int, int]:
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
    assert row is not None  # noqa: S101 - the query always returns one row
    session.changed += row[0]
    return row[0], row[1]


def _size(session: Session, schema: str, retention: TableRetention) -> int:
    query = sql.SQL("SELECT coalesce(sum(bytes), 0)::bigint FROM {} WHERE kind = %s").format(
        sql.Identifier(schema, "_kept")
    )
    row = session.connection.execute(query, (retention.table,)).fetchone()
    return int(row[0]) if row else 0


def _forget_groups(session: Session, schema: str) -> None:
    """At most once an hour, delete the detector states of groups that have no windows."""
    identifiers = {
        "kept": sql.Identifier(schema, "_kept"),
        "detectors": sql.Identifier(schema, "_detectors"),
        "aggregations": sql.Identifier(schema, "_aggregations"),
    }
    due = sql.SQL(
        "SELECT NOT EXISTS (SELECT FROM {kept} WHERE kind = '_detectors' AND place = %s"
        f" AND full_at >= now() - interval '{DETECTORS_EVERY}')"
    ).format(**identifiers)
    # Query first, to avoid a needless write.
    if session.connection.execute(due, (OPERATOR,)).fetchone() != (True,):
        return
    claim = sql.SQL(
        "INSERT INTO {kept} AS k (kind, place, full_at) VALUES ('_detectors', %s, now()) ON CONFLICT (kind, place)"
        f" DO UPDATE SET full_at = now() WHERE k.full_at < now() - interval '{DETECTORS_EVERY}'"
    ).format(**identifiers)
    if not session.connection.execute(claim, (OPERATOR,)).rowcount:
        return
    # Earlier versions of Tidemill did not write `seen`. Set a missing `seen` to the end of the last scan.
    session.write_rows(
        sql.SQL(
            "UPDATE {detectors} d SET seen = ARRAY[0, a.scanned_until] FROM {aggregations} a"
            " WHERE a.id = d.aggregation_id AND d.seen IS NULL AND a.scanned_until IS NOT NULL"
        ).format(**identifiers)
    )
    session.write_rows(
        sql.SQL(
            "DELETE FROM {detectors} d USING {aggregations} a WHERE a.id = d.aggregation_id"
            " AND d.seen[2] < a.scanned_until - greatest(a.retention_ms, %s)"
        ).format(**identifiers),
        (DETECTORS_KEPT_MS,),
    )
