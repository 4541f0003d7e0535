"""Computes how far a pipeline is behind, from its positions in Postgres and the ends of its partitions in Kafka.

This module writes nothing.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Hashable, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

import psycopg
from psycopg import sql

from tidemill_operator.actuators.kafka.log import EARLIEST, LATEST, KafkaLog
from tidemill_operator.actuators.postgres.session import Session, connected
from tidemill_operator.addresses import PostgresAddress
from tidemill_operator.errors import Reason, TidemillError
from tidemill_operator.scaling import PartitionFigures

RECENT_MS = 60_000
"""How long the freshness of a partition's last batch is used.

If no batch follows in this time, no event has arrived.
"""

_CONNECT_SECONDS = 3.0
# The timeout is short, so that locked or deleted tables of one pipeline do not delay the figures of others.
_HURRY_SECONDS = 3.0

Partitions = dict[int, PartitionFigures]
K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True)
class Position:
    """The point up to which a partition has been read, and how old it is.

    Attributes:
        next_offset: offset of the next record to read, or None if nothing was read yet.
        consumed: number of records in committed batches.
        freshness_ms: time from the arrival of the last batch's oldest record to the batch's commit, or None if unknown.
        silent_ms: time since the commit of the last batch.
        confirmed_ms: when a processor last reached the end, in epoch ms, or None if it never did. This time is needed,
            because transaction markers may follow the last record, so that the position never equals the end.
    """

    next_offset: int | None
    consumed: int
    freshness_ms: int | None
    silent_ms: int
    confirmed_ms: int | None = None


def read_positions(session: Session, schema: str) -> dict[int, Position]:
    """Return the live positions by partition."""
    query = sql.SQL(
        "SELECT partition, next_offset, consumed, freshness_ms,"
        " (extract(epoch FROM clock_timestamp() - last_event_at) * 1000)::bigint,"
        " (extract(epoch FROM end_confirmed_at) * 1000)::bigint"
        " FROM {} WHERE reader = 'live' ORDER BY partition"
    )
    rows = session.connection.execute(query.format(sql.Identifier(schema, "_offsets"))).fetchall()
    return {
        partition: Position(next_offset, consumed, freshness, max(0, silent or 0), confirmed)
        for partition, next_offset, consumed, freshness, silent, confirmed in rows
    }


def read_watermark(session: Session, schema: str) -> int | None:
    """Return the watermark in epoch ms, or None if there is none yet."""
    query = sql.SQL("SELECT watermark FROM {} WHERE reader = 'live'").format(sql.Identifier(schema, "_readers"))
    row = session.connection.execute(query).fetchone()
    return None if row is None else row[0]


@dataclass(frozen=True)
class Compared:
    """A pipeline's positions, compared with the ends of its partitions.

    Attributes:
        partitions: the partitions whose ends Kafka reported.
        fault: why other partitions are unknown, or empty if all are known.
    """

    partitions: Partitions
    fault: str = ""


def against(log: KafkaLog, wanted: Mapping[K, tuple[str, Mapping[int, Position]]]) -> dict[K, Compared]:
    """Compare the positions of many pipelines with the ends of their partitions.

    Args:
        log: reads the partitions in Kafka.
        wanted: the topic of each pipeline, and its positions by partition.

    Returns:
        The comparison for each pipeline.
    """
    places = {(topic, partition): at for topic, positions in wanted.values() for partition, at in positions.items()}
    ends = log.offsets(places, LATEST)
    # The first offset is read only for partitions with uncounted records, because some of these records may have been
    # deleted.
    behind = {
        (topic, partition)
        for topic, positions in wanted.values()
        for partition, at in positions.items()
        if ends.at.get((topic, partition), at.next_offset) != at.next_offset
    }
    starts = log.offsets(behind, EARLIEST)
    faults = {**starts.faults, **ends.faults}
    found: dict[K, Compared] = {}
    for key, (topic, positions) in wanted.items():
        fault = next((faults[topic, partition] for partition in positions if (topic, partition) in faults), None)
        partitions = {
            partition: PartitionFigures(
                starts.at.get((topic, partition), at.next_offset or 0),
                ends.at[topic, partition],
                at.next_offset,
                at.consumed,
            )
            for partition, at in positions.items()
            if (topic, partition) not in faults
        }
        text = "" if fault is None else f"offsets of topic {topic}: {log.name} does not report them ({fault})"
        found[key] = Compared(partitions, text)
    return found


def partitions_of(log: KafkaLog, topic: str, positions: Mapping[int, Position]) -> Partitions:
    """Compare the positions of one pipeline with the ends of its partitions.

    Raises:
        TidemillError: Kafka does not report an end.
    """
    found = against(log, {"": (topic, positions)})[""]
    if found.fault:
        raise TidemillError(Reason.UNREACHABLE, found.fault)
    return found.partitions


def oldest(partitions: Partitions) -> dict[int, int]:
    """Return the offset of the oldest record that is not counted, for each partition with such a record."""
    return {number: at.end - at.lag for number, at in partitions.items() if at.lag}


def freshness_seconds(positions: Mapping[int, Position], ages: Mapping[int, float]) -> float | None:
    """Return the time from an event's arrival in Kafka to the commit that counts it, for the worst partition.

    Args:
        positions: the positions by partition.
        ages: seconds since the arrival of the oldest event that is not counted, for partitions that have such an event.

    Returns:
        Seconds, or None if no events arrive.
    """
    done = [
        at.freshness_ms / 1000 for at in positions.values() if at.freshness_ms is not None and at.silent_ms < RECENT_MS
    ]
    return max([*done, *ages.values()], default=None)


@dataclass(frozen=True)
class Standing:
    """A pipeline's progress according to Postgres.

    Attributes:
        positions: the positions by partition.
        watermark_ms: the watermark in epoch ms, or None if there is none yet.
        at: when positions and watermark were read, in seconds of `time.monotonic()`.
    """

    positions: Mapping[int, Position]
    watermark_ms: int | None
    at: float

    def as_of(self, now: float) -> dict[int, Position]:
        """Return the positions as they are at `now` if none has changed since they were read."""
        silent = int(max(0.0, now - self.at) * 1000)
        return {number: replace(at, silent_ms=at.silent_ms + silent) for number, at in self.positions.items()}


class NotThere(str):
    """The reason why a schema has no positions, although Postgres answers."""


def read_standings(postgres: PostgresAddress, schemas: Collection[str]) -> dict[str, Standing | str]:
    """Return the progress of each schema's processors, or why it is unknown.

    Raises:
        TidemillError: Postgres does not answer.
    """
    found: dict[str, Standing | str] = {}
    with connected(postgres, "reading positions", timeout_seconds=_CONNECT_SECONDS, read_only=True) as session:
        session.connection.hurry(_HURRY_SECONDS)
        session.connection.execute("SET lock_timeout = '500ms'")
        for schema in schemas:
            try:
                at, positions = time.monotonic(), read_positions(session, schema)
                told = Standing(positions, read_watermark(session, schema), at)
                found[schema] = told if positions else NotThere(f"{_of(schema)}: the table _offsets is empty")
            except psycopg.ProgrammingError as error:
                found[schema] = NotThere(f"{_of(schema)}: {' '.join(str(error).split())}")
            except psycopg.Error as error:
                if session.connection.broken or session.connection.closed:
                    raise
                found[schema] = f"{_of(schema)}: {' '.join(str(error).split())}"
    return found


def _of(schema: str) -> str:
    return f"positions of schema {schema}"
