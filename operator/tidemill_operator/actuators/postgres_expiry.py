"""Retention: partitions of windows and kept events that the watermark left behind long ago are detached and dropped.

A partition is due when its end lies before watermark - retention. It is marked then, and dropped only when that was
still so a day of wall time later: one odd timestamp must not throw history away.
"""

from __future__ import annotations

import datetime as dt
import json
import re
from contextlib import suppress

from psycopg import errors, sql

from tidemill_operator.actuators.postgres_session import Session
from tidemill_operator.plan.model import Schema

HELD_FOR = dt.timedelta(hours=24)
_PER_PASS = 4
_MARK = "tidemill.expiredSince"
_END = re.compile(r" TO \('([^']+)'\)$")


def expire(session: Session, schema: Schema) -> None:
    """Mark what became due, drop at most a few that are due for long."""
    session.connection.execute(sql.SQL("SET ROLE {}").format(sql.Identifier(schema.owner)))
    try:
        dropped = 0
        for parent, child, end, comment, pending in _due(session, schema):
            since = _since(comment)
            if pending is None and since is None:
                since_now = json.dumps({_MARK: _now(session).isoformat()})
                session.write("COMMENT ON TABLE {} IS {}", sql.Identifier(schema.name, child), sql.Literal(since_now))
            elif dropped < _PER_PASS and (pending or _now(session) - (since or end) >= HELD_FOR):
                # A busy partition is left for the next pass.
                with suppress(errors.LockNotAvailable, errors.QueryCanceled):
                    _drop(session, schema.name, parent, child, pending=bool(pending))
                    dropped += 1
    finally:
        session.connection.execute("RESET ROLE")


def _due(session: Session, schema: Schema) -> list[tuple[str, str, dt.datetime, str | None, bool | None]]:
    rows = session.connection.execute(
        sql.SQL(
            "SELECT a.table_name, c.relname, pg_get_expr(c.relpartbound, c.oid), obj_description(c.oid, 'pg_class'),"
            " nullif(i.inhdetachpending, false),"
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
    found = []
    for parent, child, bound, comment, pending, cutoff in rows:
        match = _END.search(bound or "")
        end = dt.datetime.fromisoformat(match.group(1)) if match else None
        if end is not None and (end <= cutoff or pending):
            found.append((parent, child, end, comment, pending))
    return found


def _since(comment: str | None) -> dt.datetime | None:
    try:
        return dt.datetime.fromisoformat(json.loads(comment or "{}")[_MARK])
    except (ValueError, KeyError, TypeError):
        return None


def _now(session: Session) -> dt.datetime:
    ((now,),) = session.rows("SELECT clock_timestamp()")
    assert isinstance(now, dt.datetime)  # noqa: S101 - what Postgres' type is read as
    return now


def _drop(session: Session, schema: str, parent: str, child: str, *, pending: bool) -> None:
    how = sql.SQL("FINALIZE" if pending else "CONCURRENTLY")
    names = sql.Identifier(schema, parent), sql.Identifier(schema, child)
    session.write("ALTER TABLE {} DETACH PARTITION {} {}", *names, how)
    session.write("DROP TABLE {}", names[1])
