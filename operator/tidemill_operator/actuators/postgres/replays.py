"""Observe, complete and cancel replays in a pipeline's schema."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

from psycopg import sql

from tidemill_operator.actuators.postgres.session import Session
from tidemill_operator.plan.live import LiveReplay, Loss
from tidemill_operator.plan.model import Schema


def observe_replays(session: Session, schema: str, columns: Mapping[str, Collection[str]]) -> dict[str, LiveReplay]:
    """Return the replays of a schema, with the column `reader` as the key."""
    if not {"_readers", "_aggregations"} <= columns.keys() or "feeds" not in columns.get("_offsets", ()):
        return {}
    # The lag is the sum over partitions that the replay has not completed.
    query = sql.SQL(
        "SELECT r.reader, r.switched_at IS NOT NULL, count(*) FILTER (WHERE l.feeds @> v.ids),"
        " coalesce(sum(o.consumed), 0)::bigint, coalesce(sum(greatest(l.next_offset - o.next_offset, 0))"
        " FILTER (WHERE NOT l.feeds @> v.ids), 0)::bigint"
        " FROM {readers} r LEFT JOIN LATERAL"
        " (SELECT array_agg(a.id) AS ids FROM {aggregations} a WHERE a.reader = r.reader) v ON true"
        " LEFT JOIN {offsets} l ON l.reader = 'live'{read}"
        " LEFT JOIN {offsets} o ON o.reader = r.reader AND o.partition = l.partition"
        " WHERE r.reader <> 'live' GROUP BY 1, 2"
    ).format(
        readers=sql.Identifier(schema, "_readers"),
        aggregations=sql.Identifier(schema, "_aggregations"),
        offsets=sql.Identifier(schema, "_offsets"),
        read=_reading_condition(schema) if "_slots" in columns else sql.SQL(""),
    )
    rows = session.connection.execute(query).fetchall()
    losses = _losses(session, schema) if "_lost" in columns else {}
    return {reader: replace(LiveReplay(*fields), losses=tuple(losses.get(reader, ()))) for reader, *fields in rows}


def _reading_condition(schema: str) -> sql.Composed:
    slots = sql.Identifier(schema, "_slots")
    return sql.SQL(" AND EXISTS (SELECT FROM {} s WHERE s.slot = l.partition AND s.reading)").format(slots)


def _losses(session: Session, schema: str) -> dict[str, list[Loss]]:
    query = sql.SQL(
        "SELECT reader, reason, partition, epoch, from_offset, to_offset FROM {} WHERE reader <> 'live'"
        " ORDER BY partition, from_offset"
    ).format(sql.Identifier(schema, "_lost"))
    losses: dict[str, list[Loss]] = {}
    for reader, *loss in session.connection.execute(query):
        losses.setdefault(reader, []).append(Loss(*loss))
    return losses


def delete_cancelled_replays(session: Session, schema: Schema) -> None:
    """Delete the rows and the tables of cancelled replays."""
    aggregations, offsets = sql.Identifier(schema.name, "_aggregations"), sql.Identifier(schema.name, "_offsets")
    for reader in schema.abandoned:
        # Stop live processors from writing to the tables before the tables are dropped.
        session.write_rows(
            sql.SQL(
                "UPDATE {} o SET feeds = (SELECT coalesce(array_agg(f), '{{}}') FROM unnest(o.feeds) f"
                " WHERE f NOT IN (SELECT id FROM {} WHERE reader = %s))"
                " WHERE o.feeds && (SELECT array_agg(id) FROM {} WHERE reader = %s)"
            ).format(offsets, aggregations, aggregations),
            (reader, reader),
        )
        tables = session.connection.execute(
            sql.SQL("DELETE FROM {} WHERE reader = %s RETURNING table_name").format(aggregations), (reader,)
        ).fetchall()
        for (table,) in tables:
            session.write("DROP TABLE IF EXISTS {}", sql.Identifier(schema.name, table))
        for identifier in (offsets, sql.Identifier(schema.name, "_lost"), sql.Identifier(schema.name, "_readers")):
            session.write_rows(sql.SQL("DELETE FROM {} WHERE reader = %s").format(identifier), (reader,))


def complete_replay(session: Session, schema: Schema) -> None:
    """Complete a replay, and make live processors stop filling aggregation versions that are not in the plan."""
    offsets = sql.Identifier(schema.name, "_offsets")
    if schema.switched_replay:
        readers = sql.Identifier(schema.name, "_readers")
        session.write_rows(
            sql.SQL("UPDATE {} SET switched_at = now() WHERE reader = %s AND switched_at IS NULL").format(readers),
            (schema.switched_replay,),
        )
        session.write_rows(sql.SQL("DELETE FROM {} WHERE reader = %s").format(offsets), (schema.switched_replay,))
    # The column `feeds` contains the ids of aggregation versions that live processors fill.
    session.write_rows(
        sql.SQL(
            "UPDATE {} o SET feeds = (SELECT coalesce(array_agg(f), '{{}}') FROM unnest(o.feeds) f"
            " WHERE f = ANY(%(kept)s::integer[])) WHERE NOT o.feeds <@ %(kept)s::integer[]"
        ).format(offsets),
        {"kept": _planned_ids(session, schema)},
    )


def _planned_ids(session: Session, schema: Schema) -> list[int]:
    rows = session.connection.execute(
        sql.SQL("SELECT id, name, version FROM {}").format(sql.Identifier(schema.name, "_aggregations"))
    )
    wanted = {(row.name, row.version) for row in schema.aggregations}
    return [id_ for id_, name, version in rows if (name, version) in wanted]
