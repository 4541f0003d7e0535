"""Write the operator's own rows in the tables of a pipeline's schema."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from psycopg import sql

from tidemill_contract.functions.fill_history import FillHistory
from tidemill_contract.tables.aggregations import DEDUPE_READER
from tidemill_operator.actuators.postgres.session import Session
from tidemill_operator.actuators.postgres.slots import ensure_slots
from tidemill_operator.plan.kafka.claims import TOPICS_TABLE
from tidemill_operator.plan.live import LiveSchema
from tidemill_operator.plan.model import Schema
from tidemill_operator.plan.postgres.fill_histories import fill_histories_after
from tidemill_operator.plan.postgres.migration import with_types_of


def ensure_rows(session: Session, schema: Schema, live: LiveSchema | None, *, regress: bool) -> None:
    """Make the required rows match the plan.

    Args:
        session: the session, inside the transaction that made the tables.
        schema: the schema in the plan.
        live: the schema before that transaction, or None if it did not exist.
        regress: accept a resource with a lower generation. The generation of a new resource starts at 1.
    """
    _ensure_readers(session, schema)
    if schema.listed_topics:
        ensure_slots(session, schema)
    else:
        _ensure_positions(session, schema)
    _ensure_aggregations(session, schema, live or LiveSchema())
    _ensure_generation(session, schema, regress=regress)
    for topic in schema.topics_to_record:
        session.write_rows(
            sql.SQL("INSERT INTO {} (name) VALUES (%s) ON CONFLICT DO NOTHING").format(
                _table(schema, TOPICS_TABLE.name)
            ),
            (topic,),
        )


def _table(schema: Schema, name: str) -> sql.Identifier:
    return sql.Identifier(schema.name, name)


def _ensure_readers(session: Session, schema: Schema) -> None:
    readers = _table(schema, "_readers")
    for reader in ("live", schema.replay):
        if reader:
            session.write_rows(
                sql.SQL("INSERT INTO {} (reader) SELECT %s WHERE NOT EXISTS (SELECT FROM {} WHERE reader = %s)").format(
                    readers, readers
                ),
                (reader, reader),
            )


def _ensure_positions(session: Session, schema: Schema) -> None:
    readers, offsets = _table(schema, "_readers"), _table(schema, "_offsets")
    # In each partition, a replay's position gets the same epoch number as the live reader's position. In a partition
    # that is added later, the live reader starts at offset 0.
    session.write_rows(
        sql.SQL(
            "INSERT INTO {} (reader, partition, epoch, next_offset) SELECT r.reader, p, coalesce(l.epoch, 0),"
            " CASE WHEN r.reader = 'live' AND EXISTS (SELECT FROM {} WHERE reader = 'live') THEN 0 END"
            " FROM {} r CROSS JOIN generate_series(0, %s - 1) p"
            " LEFT JOIN {} l ON l.reader = 'live' AND l.partition = p"
            " WHERE r.switched_at IS NULL"
            " AND NOT EXISTS (SELECT FROM {} o WHERE o.reader = r.reader AND o.partition = p)"
        ).format(offsets, offsets, readers, offsets, offsets),
        (schema.partitions,),
    )


def _ensure_aggregations(session: Session, schema: Schema, live: LiveSchema) -> None:
    table, histories = _table(schema, "_aggregations"), fill_histories_after(schema, live)
    for row in schema.aggregations:
        key = row.name, row.version
        shape = with_types_of(row.shape, live.shapes.get(key))
        values: Mapping[str, Any] = asdict(row) | {"shape": shape} | _feed_columns(histories.pop(key, FillHistory()))
        session.write_rows(
            sql.SQL(
                "INSERT INTO {} (name, version, table_name, reader, ids, shape, partition_days, retention_ms)"
                " SELECT %(name)s, %(version)s, %(table_name)s, %(reader)s,"
                # A restarted replay must not find the event ids of its previous start. A version filled by live
                # processors uses the previous version's event ids. The event ids show copies of earlier events.
                f" CASE %(reader)s WHEN 'live' THEN coalesce((SELECT {DEDUPE_READER} FROM {{}} WHERE reader = 'live'"
                " ORDER BY name = %(name)s DESC, version DESC LIMIT 1), 'live')"
                " ELSE %(reader)s || '@' || pg_current_xact_id()::text END,"
                " %(shape)s, %(partition_days)s, %(retention_ms)s"
                " WHERE NOT EXISTS (SELECT FROM {} WHERE name = %(name)s AND version = %(version)s)"
            ).format(table, table, table),
            values,
        )
        session.write_rows(
            sql.SQL(
                f"UPDATE {{}} SET reader = %(reader)s, ids = {DEDUPE_READER}, shape = %(shape)s,"
                " retention_ms = %(retention_ms)s,"
                " layout = %(layout)s, fed = %(fed)s"
                " WHERE name = %(name)s AND version = %(version)s AND (reader, shape, retention_ms, layout, fed)"
                " IS DISTINCT FROM (%(reader)s, %(shape)s::jsonb, %(retention_ms)s, %(layout)s, %(fed)s::jsonb)"
            ).format(table),
            values,
        )
    for (name, version), history in histories.items():
        session.write_rows(
            sql.SQL(
                "UPDATE {} SET shape = %(shape)s, layout = %(layout)s, fed = %(fed)s"
                " WHERE name = %(name)s AND version = %(version)s"
                " AND (shape, layout, fed) IS DISTINCT FROM (%(shape)s::jsonb, %(layout)s, %(fed)s::jsonb)"
            ).format(table),
            {"name": name, "version": version, "shape": live.shapes[name, version], **_feed_columns(history)},
        )


def _feed_columns(history: FillHistory) -> dict[str, Any]:
    return {"layout": history.layout_number, "fed": history.columns_json}


def _ensure_generation(session: Session, schema: Schema, *, regress: bool) -> None:
    table = _table(schema, "_generation")
    session.write_rows(
        sql.SQL("INSERT INTO {} (generation) SELECT 0 WHERE NOT EXISTS (SELECT FROM {})").format(table, table)
    )
    session.write_rows(
        sql.SQL(
            "UPDATE {} SET generation = %(generation)s, accepted = %(accepted)s"
            " WHERE (generation, accepted) IS DISTINCT FROM (%(generation)s, %(accepted)s::jsonb)"
            " AND (%(regress)s OR generation <= %(generation)s)"
        ).format(table),
        {"generation": schema.generation, "accepted": schema.accepted, "regress": regress},
    )
