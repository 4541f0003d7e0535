"""Record the topics owned by a pipeline, to keep other pipelines away from them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from psycopg import sql

from tidemill_contract import names
from tidemill_operator.actuators.postgres.retained import parse_owner
from tidemill_operator.actuators.postgres.session import Session
from tidemill_operator.errors import TidemillError
from tidemill_operator.plan.kafka.claims import TOPICS_TABLE, Claim, find_conflicts
from tidemill_operator.plan.live import Owner
from tidemill_operator.plan.model import Schema

_TABLE = "_offsets"
_RELEASED_MARK = "old positions; another pipeline has taken over the topic"
_LISTED_PREFIX = "reads topics "
_MARK_QUERY = "SELECT coalesce(obj_description(oid, 'pg_class'), '') FROM pg_class WHERE oid = to_regclass(%s)"
# The comment of the table `_offsets` names the source topics of the pipeline.
_CLAIMS_QUERY = """
SELECT n.nspname, obj_description(n.oid, 'pg_namespace'), d.description
  FROM pg_description d
  JOIN pg_class c ON c.oid = d.objoid AND d.classoid = 'pg_class'::regclass AND d.objsubid = 0
  JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relname = '_offsets' AND n.nspname <> %(schema)s AND (d.description = ANY(%(marks)s)
    OR starts_with(d.description, 'reads topics ') AND string_to_array(d.description, ' ') && %(topics)s)
 ORDER BY n.nspname
"""
_SCHEMA_COMMENT_QUERY = "SELECT obj_description(oid, 'pg_namespace') FROM pg_namespace WHERE nspname = %s"


def lock_topics(session: Session, schema: Schema, owner: Owner, *, is_gone: Callable[[Owner], bool] | None) -> None:
    """Lock a pipeline's topics until the transaction ends.

    Raises:
        TidemillError: another pipeline owns a topic.
    """
    if _is_recorded(session, schema):
        return
    for topic in sorted(schema.listed_topics or (schema.source,)):
        session.rows("SELECT pg_advisory_xact_lock(hashtext('tidemill-topic'), hashtext(%s))", (topic,))
    for claim, error in list(claim_conflicts(session, schema, owner)):
        if is_gone is None or not is_gone(claim.owner):
            raise error
        with session.acting_as(names.role(claim.schema, "owner")):
            session.write(
                "COMMENT ON TABLE {} IS {}", sql.Identifier(claim.schema, _TABLE), sql.Literal(_RELEASED_MARK)
            )


def claim_conflicts(session: Session, schema: Schema, owner: Owner) -> Iterator[tuple[Claim, TidemillError]]:
    """Yield other pipelines' claims to this pipeline's topics, and an error for each claim."""
    if _is_recorded(session, schema):
        return
    # Topics on other Kafka clusters have no owner.
    topics = (*schema.own_sources, *schema.outputs)
    topics_by_mark = {text: (topic, managed) for topic in topics for text, managed in _possible_marks(topic)}
    claims = []
    parameters = {"marks": list(topics_by_mark), "topics": list(topics), "schema": schema.name}
    for name, comment, mark in session.rows(_CLAIMS_QUERY, parameters):
        if (other := parse_owner(comment)) is not None:
            listed = [(topic, False) for topic in topics if topic in mark.removeprefix(_LISTED_PREFIX).split(" ")]
            pairs = [topics_by_mark[mark]] if mark in topics_by_mark else listed
            claims += [Claim(topic, managed, other, name) for topic, managed in pairs]
    yield from find_conflicts(schema, owner, [*claims, *_output_claims(session, schema)])


def record_claim(session: Session, schema: Schema) -> None:
    """Record the source topics of a pipeline in the comment of the table `_offsets`."""
    wanted = _wanted_mark(schema)
    if _stored_mark(session, schema) != wanted:
        session.write("COMMENT ON TABLE {} IS {}", sql.Identifier(schema.name, _TABLE), sql.Literal(wanted))


def created_topics(session: Session, schema: str) -> frozenset[str]:
    """Return the topics that the operator created for a pipeline."""
    query = sql.SQL("SELECT name FROM {}").format(sql.Identifier(schema, TOPICS_TABLE.name))
    return frozenset(name for (name,) in session.connection.execute(query))


def _output_claims(session: Session, schema: Schema) -> Iterator[Claim]:
    """Yield a claim for each source topic that is the output topic of another pipeline."""
    for source in schema.own_sources:
        parsed = names.parse_topic(source)
        if parsed is None or parsed[2] not in names.OUTPUT_TOPICS:
            continue
        writer_schema = names.schema(parsed[0], parsed[1])
        for (comment,) in session.rows(_SCHEMA_COMMENT_QUERY, (writer_schema,)):
            if (other := parse_owner(comment)) is not None:
                yield Claim(source, managed=True, owner=other, schema=writer_schema)


def _is_recorded(session: Session, schema: Schema) -> bool:
    """Return True if the schema already records the pipeline's topics.

    In this case, no check for conflicts is needed.
    """
    mark = _stored_mark(session, schema)
    return mark == _wanted_mark(schema) or (mark == "" and not schema.source_managed)


def _possible_marks(topic: str) -> tuple[tuple[str, bool], tuple[str, bool]]:
    return (f"positions in {topic}", True), (f"reads {topic}", False)


def _wanted_mark(schema: Schema) -> str:
    if not schema.source:
        return ""
    if schema.source_cluster:
        return f"reads {', '.join(schema.listed_topics or (schema.source,))} of {schema.source_cluster}"
    if schema.listed_topics:
        return _LISTED_PREFIX + " ".join(schema.listed_topics)
    return next(text for text, managed in _possible_marks(schema.source) if managed == schema.source_managed)


def _stored_mark(session: Session, schema: Schema) -> str | None:
    table = f'"{schema.name}"."{_TABLE}"'
    rows = session.rows(_MARK_QUERY, (table,))
    return rows[0][0] if rows else None
