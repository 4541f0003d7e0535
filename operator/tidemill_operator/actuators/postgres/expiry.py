"""Drop expired partitions of the tables of windows and of stored events.

An expired partition is marked, and dropped only if it is still expired 24 hours later.
"""

from __future__ import annotations

import datetime as dt
import json
import re
from contextlib import suppress
from dataclasses import dataclass

from psycopg import errors, sql

from tidemill_operator.actuators.postgres.row_expiry import expire_rows
from tidemill_operator.actuators.postgres.session import Session
from tidemill_operator.plan.model import Schema

DROP_DELAY = dt.timedelta(hours=24)
_DROPS_PER_PASS = 4
_MARK = "tidemill.expiredSince"
_END = re.compile(r" TO \('([^']+)'\)$")


@dataclass(frozen=True)
class _Partition:
    """A partition of a table.

    Attributes:
        expired_since: time at which the partition was marked as expired, or None.
        pending: whether the partition is being detached.
        is_expired: whether the partition is past its retention.
    """

    parent: str
    name: str
    end: dt.datetime
    expired_since: dt.datetime | None
    pending: bool
    is_expired: bool


def expire(session: Session, schema: Schema) -> None:
    """Mark expired partitions, and drop partitions that were marked 24 hours ago."""
    session.connection.execute(sql.SQL("SET ROLE {}").format(sql.Identifier(schema.owner)))
    try:
        dropped = _drop_detached(session, schema.name)
        for partition in _partitions(session, schema):
            if not partition.is_expired:
                if partition.expired_since is not None:
                    _mark(session, schema.name, partition, None)
            elif not partition.pending and partition.expired_since is None:
                _mark(session, schema.name, partition, json.dumps({_MARK: _now(session).isoformat()}))
            elif dropped < _DROPS_PER_PASS and (
                partition.pending or _now(session) - (partition.expired_since or partition.end) >= DROP_DELAY
            ):
                # A partition in use is dropped in a later pass.
                with suppress(errors.LockNotAvailable, errors.QueryCanceled):
                    _drop(session, schema.name, partition)
                    dropped += 1
        expire_rows(session, schema)
    finally:
        session.connection.execute("RESET ROLE")


def _partitions(session: Session, schema: Schema) -> list[_Partition]:
    rows = session.connection.execute(
        sql.SQL(
            "SELECT a.table_name, c.relname, pg_get_expr(c.relpartbound, c.oid), obj_description(c.oid, 'pg_class'),"
            " i.inhdetachpending,"
            " to_timestamp((r.watermark - a.retention_ms) / 1000.0)"
            " FROM (SELECT table_name, reader, retention_ms FROM {} UNION ALL"
            " SELECT '_events', 'live', %s::bigint) a"
            " JOIN {} r ON r.reader = a.reader JOIN pg_class p ON p.relname = a.table_name"
            " AND p.relnamespace = %s::regnamespace JOIN pg_inherits i ON i.inhparent = p.oid"
            " JOIN pg_class c ON c.oid = i.inhrelid"
            " WHERE r.watermark IS NOT NULL AND a.retention_ms IS NOT NULL ORDER BY c.relname"
        ).format(sql.Identifier(schema.name, "_aggregations"), sql.Identifier(schema.name, "_readers")),
        (schema.events_retention_ms, sql.Identifier(schema.name).as_string(session.connection)),
    ).fetchall()
    partitions = []
    for parent, child, bound, comment, pending, cutoff in rows:
        match = _END.search(bound or "")
        end = dt.datetime.fromisoformat(match.group(1)) if match else None
        if end is not None:
            partitions.append(
                _Partition(parent, child, end, _expired_since(comment), pending, end <= cutoff or pending)
            )
    return partitions


def _mark(session: Session, schema: str, partition: _Partition, mark: str | None) -> None:
    session.write("COMMENT ON TABLE {} IS {}", sql.Identifier(schema, partition.name), sql.Literal(mark))


def _drop_detached(session: Session, schema: str) -> int:
    rows = session.rows(
        "SELECT c.relname, obj_description(c.oid, 'pg_class') FROM pg_class c JOIN pg_namespace n"
        " ON n.oid = c.relnamespace WHERE n.nspname = %s AND c.relkind = 'r' AND NOT c.relispartition ORDER BY 1",
        (schema,),
    )
    detached = [name for name, comment in rows if _expired_since(comment) is not None][:_DROPS_PER_PASS]
    for name in detached:
        session.write("DROP TABLE {}", sql.Identifier(schema, name))
    return len(detached)


def _expired_since(comment: str | None) -> dt.datetime | None:
    try:
        return dt.datetime.fromisoformat(json.loads(comment or "{}")[_MARK])
    except (ValueError, KeyError, TypeError):
        return None


def _now(session: Session) -> dt.datetime:
    ((now,),) = session.rows("SELECT clock_timestamp()")
    assert isinstance(now, dt.datetime)  # noqa: S101 - psycopg reads a timestamptz as this type
    return now


def _drop(session: Session, schema: str, partition: _Partition) -> None:
    mode = sql.SQL("FINALIZE" if partition.pending else "CONCURRENTLY")
    names = sql.Identifier(schema, partition.parent), sql.Identifier(schema, partition.name)
    session.write("ALTER TABLE {} DETACH PARTITION {} {}", *names, mode)
    session.write("DROP TABLE {}", names[1])
