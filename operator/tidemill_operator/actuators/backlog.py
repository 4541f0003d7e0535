"""How far a pipeline is behind: positions in Postgres against the ends of its partitions in Kafka. Reads only."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass
from typing import Any

from confluent_kafka import KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec
from psycopg import sql

from tidemill_operator.actuators.postgres_session import Session, connected
from tidemill_operator.errors import Reason, TidemillError
from tidemill_operator.servers.addresses import PostgresAddress

_SECONDS = 10.0


@dataclass(frozen=True)
class Backlog:
    """What a pipeline has not yet done.

    Attributes:
        lag: events that are in the topic and not accounted for.
        freshness_seconds: from an event's arrival in Kafka to the row that counts it; None: none was counted yet.
    """

    lag: int
    freshness_seconds: float | None


@dataclass(frozen=True)
class Position:
    """How far a partition has been read.

    Attributes:
        next_offset: of the record that is to be read next; None: nothing was read yet.
        consumed: records accounted for.
        freshness_ms: from the arrival of the last batch's oldest record to its commit; None: not known.
        silent_ms: since that commit.
    """

    next_offset: int | None
    consumed: int
    freshness_ms: int | None
    silent_ms: int


def read_positions(session: Session, schema: str) -> dict[int, Position]:
    """Positions by partition."""
    query = sql.SQL(
        "SELECT partition, next_offset, consumed, freshness_ms,"
        " (extract(epoch FROM clock_timestamp() - last_event_at) * 1000)::bigint"
        " FROM {} WHERE reader = 'live' ORDER BY partition"
    )
    rows = session.connection.execute(query.format(sql.Identifier(schema, "_offsets"))).fetchall()
    return {
        partition: Position(next_offset, consumed, freshness, max(0, silent or 0))
        for partition, next_offset, consumed, freshness, silent in rows
    }


def freshness_seconds(positions: Mapping[int, Position], ends: Mapping[int, int]) -> float | None:
    """From an event's arrival in Kafka to the row that counts it, of the partition that is worst; None: none was read.

    A partition with lag gets older by the time in which nothing of it was stored.
    """
    found = [
        at.freshness_ms + (at.silent_ms if ends[partition] > (at.next_offset or 0) else 0)
        for partition, at in positions.items()
        if at.freshness_ms is not None
    ]
    return max(found) / 1000 if found else None


class BacklogReader:
    """Reads backlogs; safe to call from several threads.

    Args:
        brokers: bootstrap brokers.
        postgres: the database and its administrator's login.
        config: further client settings of Kafka.
    """

    def __init__(self, brokers: str, postgres: PostgresAddress, *, config: Mapping[str, Any] | None = None) -> None:
        self.config = {"bootstrap.servers": brokers, "log_level": 0, **(config or {})}
        self._postgres = postgres
        self._client: AdminClient | None = None

    @property
    def _kafka(self) -> AdminClient:
        """The client, made when first asked for."""
        if self._client is None:
            self._client = AdminClient(self.config)
        return self._client

    def read(self, schema: str, topic: str) -> Backlog:
        """The backlog of a pipeline.

        Raises:
            TidemillError: a server does not answer, or there is no such schema or topic.
        """
        with connected(self._postgres, f"reading positions of schema {schema}") as session:
            session.connection.hurry(_SECONDS)
            positions = read_positions(session, schema)
        ends, starts = (self.offsets(topic, list(positions), spec) for spec in (LATEST, EARLIEST))
        # Nothing read yet counts from where the partition begins, not from zero: old events are gone from there.
        lag = sum(max(0, ends[p] - max(starts[p], at.next_offset or 0)) for p, at in positions.items())
        return Backlog(lag, freshness_seconds(positions, ends))

    def offsets(self, topic: str, partitions: list[int], spec: OffsetSpec) -> dict[int, int]:
        """Offsets of partitions.

        Raises:
            TidemillError: Kafka does not tell.
        """
        wanted = {TopicPartition(topic, partition): spec for partition in partitions}
        try:
            asked = self._kafka.list_offsets(wanted, request_timeout=_SECONDS) if wanted else {}
            return {at.partition: future.result(_SECONDS + 5.0).offset for at, future in asked.items()}
        except (KafkaException, FutureTimeout) as error:
            raise TidemillError(
                Reason.UNREACHABLE, f"reading offsets of topic {topic}: Kafka does not tell ({error})"
            ) from error


EARLIEST, LATEST = OffsetSpec.earliest(), OffsetSpec.latest()
