"""Whose topic a topic is: written on the schema of the pipeline that was first; others may read it, not manage it."""

from __future__ import annotations

import json
from collections.abc import Iterator

from psycopg import sql

from tidemill_operator.actuators.postgres_session import Session
from tidemill_operator.errors import TidemillError
from tidemill_operator.plan.model import Owner, Schema
from tidemill_operator.plan.refusals import claimed

_TABLE = "_offsets"
_MARK = "SELECT obj_description(to_regclass(%s), 'pg_class')"
# A pipeline's table of positions tells which topic they are positions of.
_RIVALS = """
SELECT obj_description(n.oid, 'pg_namespace')
  FROM pg_description d
  JOIN pg_class c ON c.oid = d.objoid AND d.classoid = 'pg_class'::regclass AND d.objsubid = 0
  JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relname = '_offsets' AND d.description = %s AND n.nspname <> %s
 ORDER BY n.nspname
"""


def only_claim(session: Session, schema: Schema, owner: Owner) -> Iterator[TidemillError]:
    """The same as `rivals`, and nobody else can begin to manage the topic until the transaction ends."""
    if schema.source and _marked(session, schema) != _mark(schema):
        session.rows("SELECT pg_advisory_xact_lock(hashtext('tidemill-topic'), hashtext(%s))", (schema.source,))
        yield from rivals(session, schema, owner)


def rivals(session: Session, schema: Schema, owner: Owner) -> Iterator[TidemillError]:
    """Why a pipeline may not manage its source topic: another one of the same cluster does.

    A pipeline that manages it already goes on.
    """
    if not schema.source or _marked(session, schema) == _mark(schema):
        return
    for (comment,) in session.rows(_RIVALS, (_mark(schema), schema.name)):
        other = _owner(comment)
        if other is not None and other.cluster == owner.cluster:
            yield claimed(schema.source, other)
            return


def claim(session: Session, schema: Schema) -> None:
    """Write on the schema's table of positions whose topic they are of."""
    wanted = _mark(schema) if schema.source else None
    if _marked(session, schema) != wanted:
        session.write("COMMENT ON TABLE {} IS {}", sql.Identifier(schema.name, _TABLE), sql.Literal(wanted))


def _mark(schema: Schema) -> str:
    return f"positions in {schema.source}"


def _marked(session: Session, schema: Schema) -> str | None:
    rows = session.rows(_MARK, (f'"{schema.name}"."{_TABLE}"',))
    return rows[0][0] if rows else None


def _owner(comment: str | None) -> Owner | None:
    try:
        return Owner(**json.loads(comment or "")["tidemill"])
    except (ValueError, KeyError, TypeError):
        return None
