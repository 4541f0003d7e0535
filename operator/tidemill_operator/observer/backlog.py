"""How far a pipeline is behind: positions in Postgres against the ends of its partitions in Kafka. Reads only."""

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
"""How long the time that a batch took says how fresh answers are; then nothing has arrived."""

_CONNECT_SECONDS = 3.0
# One pipeline whose tables are locked or gone holds up no other's figures.
_HURRY_SECONDS = 3.0

Partitions = dict[int, PartitionFigures]
K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True)
class Position:
    """How far a partition has been read.

    Attributes:
        next_offset: of the record that is to be read next; None: nothing was read yet.
        consumed: records accounted for.
        freshness_ms: from the arrival of the last batch's oldest record to its commit; None: not known.
        silent_ms: since that commit.
        confirmed_ms: when a processor last met the end, in epoch ms: past the last record there may be markers of
            transactions, which nobody counts; None: never.
    """

    next_offset: int | None
    consumed: int
    freshness_ms: int | None
    silent_ms: int
    confirmed_ms: int | None = None


def read_positions(session: Session, schema: str) -> dict[int, Position]:
    """Positions by partition."""
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
    """The watermark in epoch ms; None: there is none yet."""
    query = sql.SQL("SELECT watermark FROM {} WHERE reader = 'live'").format(sql.Identifier(schema, "_readers"))
    row = session.connection.execute(query).fetchone()
    return None if row is None else row[0]


@dataclass(frozen=True)
class Compared:
    """Positions against what Kafka holds.

    Attributes:
        partitions: as far as Kafka tells.
        fault: why others are not known; empty: all are.
    """

    partitions: Partitions
    fault: str = ""


def against(log: KafkaLog, wanted: Mapping[K, tuple[str, Mapping[int, Position]]]) -> dict[K, Compared]:
    """Positions against what Kafka holds, of many pipelines at once.

    Args:
        log: Kafka.
        wanted: of each pipeline the topic, and its positions by partition.

    Returns:
        What is known of each pipeline.
    """
    places = {(topic, partition): at for topic, positions in wanted.values() for partition, at in positions.items()}
    ends = log.offsets(places, LATEST)
    # Where a partition begins matters to what is behind only: old events are gone from there.
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
        text = "" if fault is None else f"offsets of topic {topic}: Kafka does not tell ({fault})"
        found[key] = Compared(partitions, text)
    return found


def partitions_of(log: KafkaLog, topic: str, positions: Mapping[int, Position]) -> Partitions:
    """Positions against what Kafka holds, of one pipeline.

    Raises:
        TidemillError: Kafka does not tell.
    """
    found = against(log, {"": (topic, positions)})[""]
    if found.fault:
        raise TidemillError(Reason.UNREACHABLE, found.fault)
    return found.partitions


def oldest(partitions: Partitions) -> dict[int, int]:
    """Offsets of the oldest records that are not counted yet, of partitions that have any."""
    return {number: at.end - at.lag for number, at in partitions.items() if at.lag}


def freshness_seconds(positions: Mapping[int, Position], ages: Mapping[int, float]) -> float | None:
    """From an event's arrival in Kafka to the commit that counts it, of the partition that is worst.

    Args:
        positions: by partition.
        ages: seconds since the arrival of the oldest event that is not counted, of partitions that have one.

    Returns:
        None: nothing arrives.
    """
    done = [
        at.freshness_ms / 1000 for at in positions.values() if at.freshness_ms is not None and at.silent_ms < RECENT_MS
    ]
    return max([*done, *ages.values()], default=None)


@dataclass(frozen=True)
class Standing:
    """How far a pipeline's processors are, as Postgres tells.

    Attributes:
        positions: by partition.
        watermark_ms: in epoch ms; None: there is none yet.
        at: when it was read, `time.monotonic()`.
    """

    positions: Mapping[int, Position]
    watermark_ms: int | None
    at: float

    def as_of(self, now: float) -> dict[int, Position]:
        """Its positions, if none has moved since."""
        silent = int(max(0.0, now - self.at) * 1000)
        return {number: replace(at, silent_ms=at.silent_ms + silent) for number, at in self.positions.items()}


class NotThere(str):
    """Why the positions of a schema are not known: Postgres answers, and there are none."""


def read_standings(postgres: PostgresAddress, schemas: Collection[str]) -> dict[str, Standing | str]:
    """How far processors are, of each schema, or why that is not known.

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
