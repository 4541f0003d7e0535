"""Reads the state of a pipeline's schema, which may lack tables and columns of newer versions."""

from __future__ import annotations

from dataclasses import replace

from psycopg import sql

from tidemill_contract.functions.fill_history import FillHistory
from tidemill_contract.tables.quotas import USAGE_QUERY, read_usage
from tidemill_operator.actuators.postgres.claims import created_topics
from tidemill_operator.actuators.postgres.damage import find_emptied, missing_positions
from tidemill_operator.actuators.postgres.replays import observe_replays
from tidemill_operator.actuators.postgres.retained import parse_owner
from tidemill_operator.actuators.postgres.session import Session
from tidemill_operator.plan.kafka.claims import TOPICS_TABLE
from tidemill_operator.plan.live import LiveSchema, Loss, Slot, TaskFailure
from tidemill_operator.plan.postgres.migration import with_current_names

# Select the losses that were noticed at most five minutes before the latest loss. Ignore losses older than a day.
_LOST = """
WITH lately AS (SELECT max(noticed_at) AS at FROM {0} WHERE reader = 'live')
SELECT reason, partition, epoch, from_offset, to_offset FROM {0}, lately
 WHERE reader = 'live' AND noticed_at > lately.at - interval '5 minutes' AND lately.at > now() - interval '1 day'
"""
# Ignore rows whose last retry is older than five minutes, because their processors have ended.
_HELD_UP = """
SELECT aggregation, duty, reason FROM {} WHERE tried_at > now() - interval '5 minutes' ORDER BY since, aggregation, duty
"""
# For each aggregation and task, report only the first failure of the last 24 hours. Further failures would change the
# message.
_SKIPPED = """
SELECT DISTINCT ON (aggregation, duty) aggregation, duty, reason,
 coalesce(to_char(window_start, 'YYYY-MM-DD"T"HH24:MI:SS"Z"'), ''), coalesce(group_key::text, ''), metrics,
 count(*) OVER (PARTITION BY aggregation, duty) > 1
 FROM {} WHERE skipped_at > now() - interval '1 day' ORDER BY aggregation, duty, id
"""


def observe(session: Session, schema: str) -> LiveSchema | None:
    """Return the state of a schema, or None if the schema does not exist."""
    rows = session.rows("SELECT obj_description(oid, 'pg_namespace') FROM pg_namespace WHERE nspname = %s", (schema,))
    if not rows:
        return None
    columns = _columns(session, schema)
    live = LiveSchema(parse_owner(rows[0][0]), columns=columns)
    for read_part in (_versions, _generation, _positions, _slots, _losses, _stored_totals, _task_failures):
        live = read_part(session, schema, live)
    live = replace(
        live,
        replays=observe_replays(session, schema, columns),
        emptied=find_emptied(session, schema, columns),
        created_topics=created_topics(session, schema) if TOPICS_TABLE.name in columns else frozenset(),
    )
    return with_current_names(live)


def _columns(session: Session, schema: str) -> dict[str, dict[str, str]]:
    rows = session.rows(
        "SELECT c.relname, a.attname, format_type(a.atttypid, a.atttypmod) FROM pg_class c"
        " JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_attribute a ON a.attrelid = c.oid"
        " WHERE n.nspname = %s AND c.relkind IN ('r', 'p') AND NOT c.relispartition AND a.attnum > 0"
        " AND NOT a.attisdropped",
        (schema,),
    )
    columns: dict[str, dict[str, str]] = {}
    for table, column, kind in rows:
        columns.setdefault(table, {})[column] = kind
    return columns


def _versions(session: Session, schema: str, live: LiveSchema) -> LiveSchema:
    if "_aggregations" not in live.columns:
        return live
    # Schemas of earlier versions lack the columns `layout` and `fed`. For a missing column, the query returns null.
    query = sql.SQL(
        "SELECT name, version, reader, shape::text, closed_until, to_jsonb(a) -> 'layout', to_jsonb(a) -> 'fed'"
        " FROM {} a"
    ).format(sql.Identifier(schema, "_aggregations"))
    shapes, closed, histories, readers = {}, {}, {}, {}
    for name, version, reader, shape, until, *fill_columns in session.connection.execute(query):
        key = name, version
        shapes[key], closed[key], histories[key] = shape, until, FillHistory.read(*fill_columns)
        readers[key] = reader
    return replace(live, shapes=shapes, closed_until=closed, fill_histories=histories, readers=readers)


def _generation(session: Session, schema: str, live: LiveSchema) -> LiveSchema:
    if "accepted" not in live.columns.get("_generation", {}):
        return live
    query = sql.SQL("SELECT generation, accepted FROM {}").format(sql.Identifier(schema, "_generation"))
    generation, accepted = session.connection.execute(query).fetchone() or (0, None)
    return replace(live, generation=generation, accepted=accepted)


def _positions(session: Session, schema: str, live: LiveSchema) -> LiveSchema:
    if "_offsets" not in live.columns:
        return live
    # Schemas of earlier versions lack the column `former_topic_ids`. For a missing column, the query returns null.
    query = sql.SQL(
        "SELECT partition, topic_id, next_offset, to_jsonb(o) -> 'former_topic_ids' FROM {} o WHERE reader = 'live'"
    ).format(sql.Identifier(schema, "_offsets"))
    positions = session.connection.execute(query).fetchall()
    partitions = {partition for partition, *_ in positions}
    former_ids = frozenset(former for *_, ids in positions for former in ids or ())
    current = {topic_id for _, topic_id, _, _ in positions if topic_id}
    return replace(
        live,
        partitions=max(partitions, default=-1) + 1,
        missing_positions=missing_positions(partitions),
        former_topic_ids=former_ids,
        # Some positions may still have the former topic's ID. Each partition's position gets the new ID separately.
        topic_id=max(current - former_ids or current, default=""),
        next_offsets={partition: offset for partition, topic_id, offset, _ in sorted(positions) if topic_id},
    )


def _slots(session: Session, schema: str, live: LiveSchema) -> LiveSchema:
    if "_slots" not in live.columns or "_offsets" not in live.columns:
        return live
    query = sql.SQL(
        "SELECT s.slot, s.topic, s.partition, s.reading, s.added, coalesce(o.topic_id, ''), o.next_offset FROM {} s"
        " LEFT JOIN {} o ON o.reader = 'live' AND o.partition = s.slot ORDER BY s.slot"
    ).format(sql.Identifier(schema, "_slots"), sql.Identifier(schema, "_offsets"))
    return replace(live, slots=tuple(Slot(*row) for row in session.connection.execute(query)))


def _losses(session: Session, schema: str, live: LiveSchema) -> LiveSchema:
    if "_lost" not in live.columns:
        return live
    query = sql.SQL(_LOST).format(sql.Identifier(schema, "_lost"))
    return replace(live, losses=tuple(Loss(*row) for row in session.connection.execute(query)))


def _stored_totals(session: Session, schema: str, live: LiveSchema) -> LiveSchema:
    if "_kept" not in live.columns:
        return live
    query = sql.SQL(USAGE_QUERY).format(sql.Identifier(schema, "_kept"))
    return replace(live, stored_totals=read_usage(session.connection.execute(query).fetchall()))


def _task_failures(session: Session, schema: str, live: LiveSchema) -> LiveSchema:
    if "_held_up" in live.columns:
        query = sql.SQL(_HELD_UP).format(sql.Identifier(schema, "_held_up"))
        live = replace(live, held_up=tuple(TaskFailure(*row) for row in session.connection.execute(query)))
    if "_skipped" in live.columns:
        query = sql.SQL(_SKIPPED).format(sql.Identifier(schema, "_skipped"))
        skipped = tuple(
            TaskFailure(name, duty, reason, window, group, tuple(missing), more)
            for name, duty, reason, window, group, missing, more in session.connection.execute(query)
        )
        live = replace(live, skipped=skipped)
    return live
