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

from tidemill_operator.actuators.postgres.kept import expire_rows
from tidemill_operator.actuators.postgres.session import Session
from tidemill_operator.plan.model import Schema

HELD_FOR = dt.timedelta(hours=24)
_PER_PASS = 4
_MARK = "tidemill.expiredSince"
_END = re.compile(r" TO \('([^']+)'\)$")


@dataclass(frozen=True)
class _Partition:
    """A partition of a table.

    Attributes:
        since: time at which the partition was marked as expired, or None.
        pending: whether the partition is being detached.
        due: whether the partition is past its retention.
    """

    parent: str
    name: str
    end: dt.datetime
    since: dt.datetime | None
    pending: bool
    due: bool


def expire(session: Session, schema: Schema) -> None:
    """Mark expired partitions, and drop partitions that were marked 24 hours ago."""
    session.connection.execute(sql.SQL("SET ROLE {}").format(sql.Identifier(schema.owner)))
    try:
        dropped = _drop_detached(session, schema.name)
        for part in _partitions(session, schema):
            if not part.due:
                if part.since is not None:
                    _mark(session, schema.name, part, None)
            elif not part.pending and part.since is None:
                _mark(session, schema.name, part, json.dumps({_MARK: _now(session).isoformat()}))
            elif dropped < _PER_PASS and (part.pending or _now(session) - (part.since or part.end) >= HELD_FOR):
                # A partition in use is dropped in a later pass.
                with suppress(errors.LockNotAvailable, errors.QueryCanceled):
                    _drop(session, schema.name, part)
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
            partitions.append(_Partition(parent, child, end, _since(comment), pending, end <= cutoff or pending))
    return partitions


def _mark(session: Session, schema: str, part: _Partition, mark: str | None) -> None:
    session.write("COMMENT ON TABLE {} IS {}", sql.Identifier(schema, part.name), sql.Literal(mark))


def _drop_detached(session: Session, schema: str) -> int:
    rows = session.rows(
        "SELECT c.relname, obj_description(c.oid, 'pg_class') FROM pg_class c JOIN pg_namespace n"
        " ON n.oid = c.relnamespace WHERE n.nspname = %s AND c.relkind = 'r' AND NOT c.relispartition ORDER BY 1",
        (schema,),
    )
    left = [name for name, comment in rows if _since(comment) is not None][:_PER_PASS]
    for name in left:
        session.write("DROP TABLE {}", sql.Identifier(schema, name))
    return len(left)


def _since(comment: str | None) -> dt.datetime | None:
    try:
        return dt.datetime.fromisoformat(json.loads(comment or "{}")[_MARK])
    except (ValueError, KeyError, TypeError):
        return None


def _now(session: Session) -> dt.datetime:
    ((now,),) = session.rows("SELECT clock_timestamp()")
    assert isinstance(now, dt.datetime)  # noqa: S101 - psycopg reads a timestamptz as this type
    return now


def _drop(session: Session, schema: str, part: _Partition) -> None:
    how = sql.SQL("FINALIZE" if part.pending else "CONCURRENTLY")
    names = sql.Identifier(schema, part.parent), sql.Identifier(schema, part.name)
    session.write("ALTER TABLE {} DETACH PARTITION {} {}", *names, how)
    session.write("DROP TABLE {}", names[1])
