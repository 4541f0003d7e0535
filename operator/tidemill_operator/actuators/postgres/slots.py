"""Writes the table `_slots`: numbers for the partitions of a pipeline with several topics."""

from __future__ import annotations

from psycopg import sql

from tidemill_operator.actuators.postgres.session import Session
from tidemill_operator.plan.model import Schema


def ensure_slots(session: Session, schema: Schema) -> None:
    """Make the rows of `_slots` match the plan, but delete no row."""
    slots = sql.Identifier(schema.name, "_slots")
    for slot in schema.slots:
        session.write_rows(
            sql.SQL(
                "INSERT INTO {} (slot, topic, partition, reading, added)"
                " SELECT %(slot)s, %(topic)s, %(partition)s, %(reading)s, %(added)s"
                " WHERE NOT EXISTS (SELECT FROM {} WHERE topic = %(topic)s AND partition = %(partition)s)"
            ).format(slots, slots),
            {
                "slot": slot.number, "topic": slot.topic, "partition": slot.partition, "reading": slot.reading,
                "added": slot.added,
            },
        )  # fmt: skip
    session.write_rows(
        sql.SQL("UPDATE {} SET reading = NOT reading WHERE reading <> (slot = ANY(%s::integer[]))").format(slots),
        ([slot.number for slot in schema.slots if slot.reading],),
    )
    _ensure_positions(session, schema)


def _ensure_positions(session: Session, schema: Schema) -> None:
    slots, readers, offsets = (sql.Identifier(schema.name, name) for name in ("_slots", "_readers", "_offsets"))
    session.write_rows(
        sql.SQL(
            "INSERT INTO {offsets} (reader, partition, epoch) SELECT r.reader, s.slot, coalesce(l.epoch, 0)"
            " FROM {readers} r JOIN {slots} s ON s.reading OR r.reader = 'live'"
            " LEFT JOIN {offsets} l ON l.reader = 'live' AND l.partition = s.slot"
            " WHERE r.switched_at IS NULL"
            " AND NOT EXISTS (SELECT FROM {offsets} o WHERE o.reader = r.reader AND o.partition = s.slot)"
        ).format(offsets=offsets, readers=readers, slots=slots)
    )
