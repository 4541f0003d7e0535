"""Compare the positions of a pipeline in Postgres with the ends of its partitions in Kafka."""

from __future__ import annotations

import time
from collections.abc import Collection, Hashable, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

import psycopg
from psycopg import sql

from tidemill_contract.tables.failures import UNREAD_LOOKUP
from tidemill_operator.actuators.kafka.offsets import EARLIEST, LATEST, OffsetReader, PartitionId
from tidemill_operator.actuators.postgres.session import Session, open_session
from tidemill_operator.addresses import PostgresAddress
from tidemill_operator.errors import Reason, TidemillError
from tidemill_operator.scaling import PartitionFigures

RECENT_MS = 60_000
"""Freshness ignores a partition if the partition's last batch is at least this many ms old."""

_CONNECT_SECONDS = 3.0
# The short timeout keeps a locked table of one pipeline from delaying the figures of other pipelines.
_STATEMENT_SECONDS = 3.0

Partitions = dict[int, PartitionFigures]
K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True)
class Position:
    """The position up to which a partition has been read.

    Attributes:
        freshness_ms: time from the arrival of the last batch's oldest record to the batch's commit.
        confirmed_ms: epoch ms at which a processor last reached the end of the partition.
        place: topic and partition, or None if the pipeline reads a single topic.
    """

    next_offset: int | None
    consumed: int
    freshness_ms: int | None
    silent_ms: int
    confirmed_ms: int | None = None
    place: PartitionId | None = None

    def resolve_place(self, topic: str, partition: int) -> PartitionId:
        """Return the position's topic and partition."""
        return self.place or (topic, partition)


def read_positions(session: Session, schema: str, *, slots: bool = False) -> dict[int, Position]:
    """Return the positions of the live processors, by partition.

    With `slots`, the keys are slot numbers. A slot number identifies a topic and a partition of this topic.
    """
    places, joined = sql.SQL("NULL, NULL"), sql.Composed([])
    if slots:
        places = sql.SQL("s.topic, s.partition")
        joined = sql.SQL(" JOIN {} s ON s.slot = o.partition AND s.reading").format(sql.Identifier(schema, "_slots"))
    query = sql.SQL(
        "SELECT o.partition, next_offset, consumed, freshness_ms,"
        " (extract(epoch FROM clock_timestamp() - last_event_at) * 1000)::bigint,"
        " (extract(epoch FROM end_confirmed_at) * 1000)::bigint, {}"
        " FROM {} o{} WHERE reader = 'live' ORDER BY o.partition"
    ).format(places, sql.Identifier(schema, "_offsets"), joined)
    rows = session.connection.execute(query).fetchall()
    return {
        number: Position(
            next_offset, consumed, freshness, max(0, silent or 0), confirmed, None if topic is None else (topic, part)
        )
        for number, next_offset, consumed, freshness, silent, confirmed, topic, part in rows
    }


def schemas_with_slots(session: Session, schemas: Collection[str]) -> set[str]:
    """Return the schemas of pipelines that read a list of topics."""
    query = (
        "SELECT n.nspname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
        " WHERE c.relname = '_slots' AND n.nspname = ANY(%s)"
    )
    return {schema for (schema,) in session.connection.execute(query, (list(schemas),))}


def read_watermark(session: Session, schema: str) -> int | None:
    """Return the watermark in epoch ms, or None without a watermark."""
    query = sql.SQL("SELECT watermark FROM {} WHERE reader = 'live'").format(sql.Identifier(schema, "_readers"))
    row = session.connection.execute(query).fetchone()
    return None if row is None else row[0]


def read_unread_lookups(session: Session, schema: str) -> tuple[tuple[str, str], ...]:
    """Return the lookups that no processor could read in the last two minutes, each with the reason."""
    query = sql.SQL(
        "SELECT aggregation, reason FROM {} WHERE duty = %s AND tried_at > now() - interval '2 minutes' ORDER BY 1"
    )
    try:
        return tuple(session.connection.execute(query.format(sql.Identifier(schema, "_held_up")), (UNREAD_LOOKUP,)))
    except psycopg.errors.UndefinedTable:  # the reconcile pass reports a missing table
        return ()


@dataclass(frozen=True)
class Backlog:
    """The positions of a pipeline, compared with the ends of the partitions.

    Attributes:
        fault: reason why `partitions` is incomplete, or empty.
    """

    partitions: Partitions
    fault: str = ""


def read_backlogs(kafka: OffsetReader, wanted: Mapping[K, tuple[str, Mapping[int, Position]]]) -> dict[K, Backlog]:
    """Compare the positions of many pipelines with the ends of their partitions."""
    positions = [
        (at.resolve_place(topic, number), at)
        for topic, by_number in wanted.values()
        for number, at in by_number.items()
    ]
    ends = kafka.offsets({place for place, _ in positions}, LATEST)
    # Only partitions with uncounted records need a query for the first offset.
    behind = {place for place, at in positions if ends.at.get(place, at.next_offset) != at.next_offset}
    starts = kafka.offsets(behind, EARLIEST)
    faults = {**starts.faults, **ends.faults}
    backlogs: dict[K, Backlog] = {}
    for key, (topic, own_positions) in wanted.items():
        places = {number: at.resolve_place(topic, number) for number, at in own_positions.items()}
        fault = next((place for place in places.values() if place in faults), None)
        partitions = {
            number: PartitionFigures(
                starts.at.get(places[number], at.next_offset or 0), ends.at[places[number]], at.next_offset, at.consumed
            )
            for number, at in own_positions.items()
            if places[number] not in faults
        }
        text = ""
        if fault is not None:
            text = f"{kafka.name} does not report the offsets of topic {fault[0]} ({faults[fault]})"
        backlogs[key] = Backlog(partitions, text)
    return backlogs


def read_partitions(kafka: OffsetReader, topic: str, positions: Mapping[int, Position]) -> Partitions:
    """Compare the positions of one pipeline with the ends of its partitions.

    Raises:
        TidemillError: a query for the offsets of a partition fails.
    """
    backlog = read_backlogs(kafka, {"": (topic, positions)})[""]
    if backlog.fault:
        raise TidemillError(Reason.UNREACHABLE, backlog.fault)
    return backlog.partitions


def oldest_offsets(partitions: Partitions) -> dict[int, int]:
    """Return the oldest uncounted offset of each partition with uncounted records."""
    return {number: at.end - at.lag for number, at in partitions.items() if at.lag}


def freshness_seconds(positions: Mapping[int, Position], ages: Mapping[int, float]) -> float | None:
    """Return the highest freshness of all partitions in seconds, or None if no events arrive.

    Args:
        positions: the positions by partition.
        ages: seconds since the arrival of the oldest event that is not counted, for partitions that have such an event.
    """
    committed = [
        at.freshness_ms / 1000 for at in positions.values() if at.freshness_ms is not None and at.silent_ms < RECENT_MS
    ]
    return max([*committed, *ages.values()], default=None)


@dataclass(frozen=True)
class StoredProgress:
    """A pipeline's progress, as read from Postgres.

    Attributes:
        at: time of the reading, in monotonic seconds.
    """

    positions: Mapping[int, Position]
    watermark_ms: int | None
    at: float
    unread_lookups: tuple[tuple[str, str], ...] = ()

    def as_of(self, now: float) -> dict[int, Position]:
        """Return the positions as of `now`. The time from `at` to `now` is added to `silent_ms`."""
        silent = int(max(0.0, now - self.at) * 1000)
        return {number: replace(at, silent_ms=at.silent_ms + silent) for number, at in self.positions.items()}


class NoPositions(str):
    """The reason why a schema has no positions. Postgres itself has answered."""


def read_progress(postgres: PostgresAddress, schemas: Collection[str]) -> dict[str, StoredProgress | str]:
    """Return the progress by schema, or a text that says why the progress is unknown.

    Raises:
        TidemillError: Postgres does not answer.
    """
    progress: dict[str, StoredProgress | str] = {}
    with open_session(postgres, "reading positions", timeout_seconds=_CONNECT_SECONDS, read_only=True) as session:
        session.connection.set_timeout(_STATEMENT_SECONDS)
        session.connection.execute("SET lock_timeout = '500ms'")
        with_slots = schemas_with_slots(session, schemas)
        for schema in schemas:
            try:
                at, positions = time.monotonic(), read_positions(session, schema, slots=schema in with_slots)
                stored = StoredProgress(
                    positions, read_watermark(session, schema), at, read_unread_lookups(session, schema)
                )
                progress[schema] = (
                    stored if positions else NoPositions(f"{_label(schema)}: the table _offsets is empty")
                )
            except psycopg.ProgrammingError as error:
                progress[schema] = NoPositions(f"{_label(schema)}: {' '.join(str(error).split())}")
            except psycopg.Error as error:
                if session.connection.broken or session.connection.closed:
                    raise
                progress[schema] = f"{_label(schema)}: {' '.join(str(error).split())}"
    return progress


def _label(schema: str) -> str:
    return f"positions of schema {schema}"
