"""Record the topics owned by a pipeline, to keep other pipelines away from them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

from psycopg import sql

from tidemill_contract import names
from tidemill_operator.actuators.postgres.session import Session
from tidemill_operator.errors import TidemillError
from tidemill_operator.plan.kafka.claims import TOPICS, Claim, disputes
from tidemill_operator.plan.live import Owner
from tidemill_operator.plan.model import Schema

_TABLE = "_offsets"
_LET_GO = "old positions; another pipeline has taken over the topic"
_LISTED = "reads topics "
_MARK = "SELECT coalesce(obj_description(oid, 'pg_class'), '') FROM pg_class WHERE oid = to_regclass(%s)"
# The comment of the table `_offsets` names the source topics of the pipeline.
_CLAIMS = """
SELECT n.nspname, obj_description(n.oid, 'pg_namespace'), d.description
  FROM pg_description d
  JOIN pg_class c ON c.oid = d.objoid AND d.classoid = 'pg_class'::regclass AND d.objsubid = 0
  JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relname = '_offsets' AND n.nspname <> %(schema)s AND (d.description = ANY(%(marks)s)
    OR starts_with(d.description, 'reads topics ') AND string_to_array(d.description, ' ') && %(topics)s)
 ORDER BY n.nspname
"""
_WRITER = "SELECT obj_description(oid, 'pg_namespace') FROM pg_namespace WHERE nspname = %s"


def take(session: Session, schema: Schema, owner: Owner, *, gone: Callable[[Owner], bool] | None) -> None:
    """Lock a pipeline's topics until the transaction ends.

    Raises:
        TidemillError: another pipeline owns a topic.
    """
    if _settled(session, schema):
        return
    for topic in sorted(schema.listed or (schema.source,)):
        session.rows("SELECT pg_advisory_xact_lock(hashtext('tidemill-topic'), hashtext(%s))", (topic,))
    for held, error in list(rivals(session, schema, owner)):
        if gone is None or not gone(held.owner):
            raise error
        with session.acting_as(names.role(held.schema, "owner")):
            session.write("COMMENT ON TABLE {} IS {}", sql.Identifier(held.schema, _TABLE), sql.Literal(_LET_GO))


def rivals(session: Session, schema: Schema, owner: Owner) -> Iterator[tuple[Claim, TidemillError]]:
    """Yield other pipelines' claims to this pipeline's topics, and an error for each claim."""
    if _settled(session, schema):
        return
    # Topics on other Kafka clusters have no owner.
    topics = (*schema.own_sources, *schema.outputs)
    topics_by_mark = {text: (topic, managed) for topic in topics for text, managed in _marks(topic)}
    claims = []
    asked = {"marks": list(topics_by_mark), "topics": list(topics), "schema": schema.name}
    for name, comment, mark in session.rows(_CLAIMS, asked):
        if (other := _owner(comment)) is not None:
            read = [(topic, False) for topic in topics if topic in mark.removeprefix(_LISTED).split(" ")]
            pairs = [topics_by_mark[mark]] if mark in topics_by_mark else read
            claims += [Claim(topic, managed, other, name) for topic, managed in pairs]
    yield from disputes(schema, owner, [*claims, *_written(session, schema)])


def claim(session: Session, schema: Schema) -> None:
    """Record the source topics of a pipeline in the comment of the table `_offsets`."""
    wanted = _mark(schema)
    if _marked(session, schema) != wanted:
        session.write("COMMENT ON TABLE {} IS {}", sql.Identifier(schema.name, _TABLE), sql.Literal(wanted))


def made(session: Session, schema: str) -> frozenset[str]:
    """Return the topics that the operator created for a pipeline."""
    query = sql.SQL("SELECT name FROM {}").format(sql.Identifier(schema, TOPICS.name))
    return frozenset(name for (name,) in session.connection.execute(query))


def _written(session: Session, schema: Schema) -> Iterator[Claim]:
    """Yield a claim for each source topic that is the output topic of another pipeline."""
    for source in schema.own_sources:
        derived = names.derived_topic(source)
        if derived is None or derived[2] not in names.OUTPUT_TOPICS:
            continue
        writer = names.schema(derived[0], derived[1])
        for (comment,) in session.rows(_WRITER, (writer,)):
            if (other := _owner(comment)) is not None:
                yield Claim(source, managed=True, owner=other, schema=writer)


def _settled(session: Session, schema: Schema) -> bool:
    """Return True if the schema already records the pipeline's topics.

    In this case, no check for conflicts is needed.
    """
    marked = _marked(session, schema)
    return marked == _mark(schema) or (marked == "" and not schema.managed)


def _marks(topic: str) -> tuple[tuple[str, bool], tuple[str, bool]]:
    return (f"positions in {topic}", True), (f"reads {topic}", False)


def _mark(schema: Schema) -> str:
    if not schema.source:
        return ""
    if schema.cluster:
        return f"reads {', '.join(schema.listed or (schema.source,))} of {schema.cluster}"
    if schema.listed:
        return _LISTED + " ".join(schema.listed)
    return next(text for text, managed in _marks(schema.source) if managed == schema.managed)


def _marked(session: Session, schema: Schema) -> str | None:
    table = f'"{schema.name}"."{_TABLE}"'
    rows = session.rows(_MARK, (table,))
    return rows[0][0] if rows else None


def _owner(comment: str | None) -> Owner | None:
    try:
        return Owner(**json.loads(comment or "")["tidemill"])
    except (ValueError, KeyError, TypeError):
        return None
