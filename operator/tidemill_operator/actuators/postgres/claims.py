"""Whose topic a topic is: written on the schema of the pipeline that was first, so that others can ask for it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

from psycopg import sql

from tidemill_contract import names
from tidemill_operator.actuators.postgres.session import Session
from tidemill_operator.errors import TidemillError
from tidemill_operator.plan.kafka.claims import TOPICS, Claim, disputes
from tidemill_operator.plan.model import Owner, Schema

_TABLE = "_offsets"
_LET_GO = "positions of before; the topic was let go"
_MARK = "SELECT coalesce(obj_description(oid, 'pg_class'), '') FROM pg_class WHERE oid = to_regclass(%s)"
# A pipeline's table of positions tells which topic they are positions of.
_CLAIMS = """
SELECT n.nspname, obj_description(n.oid, 'pg_namespace'), d.description
  FROM pg_description d
  JOIN pg_class c ON c.oid = d.objoid AND d.classoid = 'pg_class'::regclass AND d.objsubid = 0
  JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relname = '_offsets' AND d.description = ANY(%s) AND n.nspname <> %s
 ORDER BY n.nspname
"""
_WRITER = "SELECT obj_description(oid, 'pg_namespace') FROM pg_namespace WHERE nspname = %s"


def take(session: Session, schema: Schema, owner: Owner, *, gone: Callable[[Owner], bool] | None) -> None:
    """Make sure that a pipeline's topics are nobody else's; nobody can begin to have them until the transaction ends.

    Args:
        session: in a transaction.
        schema: the plan's.
        owner: the pipeline.
        gone: whether another pipeline is there no more, so that its claim may be taken over; None: none may be.

    Raises:
        TidemillError: another pipeline has one of them.
    """
    if _settled(session, schema):
        return
    session.rows("SELECT pg_advisory_xact_lock(hashtext('tidemill-topic'), hashtext(%s))", (schema.source,))
    for held, error in list(rivals(session, schema, owner)):
        if gone is None or not gone(held.owner):
            raise error
        with session.acting_as(names.role(held.schema, "owner")):
            session.write("COMMENT ON TABLE {} IS {}", sql.Identifier(held.schema, _TABLE), sql.Literal(_LET_GO))


def rivals(session: Session, schema: Schema, owner: Owner) -> Iterator[tuple[Claim, TidemillError]]:
    """What other pipelines have of a pipeline's topics. One that has its own already goes on."""
    if _settled(session, schema):
        return
    known = {text: (topic, managed) for topic in (schema.source, *schema.outputs) for text, managed in _marks(topic)}
    claims = []
    for name, comment, mark in session.rows(_CLAIMS, (list(known), schema.name)):
        if (other := _owner(comment)) is not None:
            claims.append(Claim(*known[mark], other, name))
    yield from disputes(schema, owner, [*claims, *_written(session, schema)])


def claim(session: Session, schema: Schema) -> None:
    """Write on the schema's table of positions whose topic they are of."""
    wanted = _mark(schema)
    if _marked(session, schema) != wanted:
        session.write("COMMENT ON TABLE {} IS {}", sql.Identifier(schema.name, _TABLE), sql.Literal(wanted))


def made(session: Session, schema: str) -> frozenset[str]:
    """The topics that the operator made for a pipeline."""
    query = sql.SQL("SELECT name FROM {}").format(sql.Identifier(schema, TOPICS.name))
    return frozenset(name for (name,) in session.connection.execute(query))


def _written(session: Session, schema: Schema) -> Iterator[Claim]:
    """The claim of a pipeline of another namespace that writes to the topic, by its name."""
    derived = names.derived_topic(schema.source)
    if derived is None or derived[2] not in names.OUTPUT_TOPICS:
        return
    writer = names.schema(derived[0], derived[1])
    for (comment,) in session.rows(_WRITER, (writer,)):
        if (other := _owner(comment)) is not None:
            yield Claim(schema.source, managed=True, owner=other, schema=writer)


def _settled(session: Session, schema: Schema) -> bool:
    """Whether the pipeline has its topic already; one that reads it from before this was noted has."""
    marked = _marked(session, schema)
    return marked == _mark(schema) or (marked == "" and not schema.managed)


def _marks(topic: str) -> tuple[tuple[str, bool], tuple[str, bool]]:
    return (f"positions in {topic}", True), (f"reads {topic}", False)


def _mark(schema: Schema) -> str:
    return next(text for text, managed in _marks(schema.source) if managed == schema.managed)


def _marked(session: Session, schema: Schema) -> str | None:
    """What the table says; nothing: empty; None: there is no table."""
    table = f'"{schema.name}"."{_TABLE}"'
    rows = session.rows(_MARK, (table,))
    return rows[0][0] if rows else None


def _owner(comment: str | None) -> Owner | None:
    try:
        return Owner(**json.loads(comment or "")["tidemill"])
    except (ValueError, KeyError, TypeError):
        return None
