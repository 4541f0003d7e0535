"""How far a pipeline is behind: positions in Postgres against the ends of its partitions in Kafka. Reads only."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass
from typing import Any

from confluent_kafka import KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec
from psycopg import sql

from tidemill_operator.actuators.postgres_session import connected
from tidemill_operator.errors import Reason, TidemillError
from tidemill_operator.servers.addresses import PostgresAddress

_SECONDS = 10.0


@dataclass(frozen=True)
class Backlog:
    """What a pipeline has not yet done.

    Attributes:
        lag: events that are in the topic and not accounted for.
        newest_ms: event time of the newest event that was counted, epoch milliseconds; None: none was.
    """

    lag: int
    newest_ms: int | None


class BacklogReader:
    """Reads backlogs; safe to call from several threads.

    Args:
        brokers: bootstrap brokers.
        postgres: the database and its administrator's login.
        config: further client settings of Kafka.
    """

    def __init__(self, brokers: str, postgres: PostgresAddress, *, config: Mapping[str, Any] | None = None) -> None:
        self._config = {"bootstrap.servers": brokers, "log_level": 0, **(config or {})}
        self._postgres = postgres
        self._client: AdminClient | None = None

    @property
    def kafka(self) -> AdminClient:
        """The client, made when first asked for."""
        if self._client is None:
            self._client = AdminClient(self._config)
        return self._client

    def read(self, schema: str, topic: str) -> Backlog:
        """The backlog of a pipeline.

        Raises:
            TidemillError: a server does not answer, or there is no such schema or topic.
        """
        positions, newest = self._positions(schema)
        ends, starts = (self.offsets(topic, list(positions), spec) for spec in (LATEST, EARLIEST))
        # Nothing read yet counts from where the partition begins, not from zero: old events are gone from there.
        lag = sum(max(0, ends[p] - max(starts[p], offset or 0)) for p, offset in positions.items())
        return Backlog(lag, newest)

    def _positions(self, schema: str) -> tuple[dict[int, int | None], int | None]:
        query = sql.SQL("SELECT partition, next_offset, max_event_time FROM {} WHERE reader = 'live'")
        with connected(self._postgres, f"reading positions of schema {schema}") as session:
            rows = session.connection.execute(query.format(sql.Identifier(schema, "_offsets"))).fetchall()
        times = [row[2] for row in rows if row[2] is not None]
        return {row[0]: row[1] for row in rows}, max(times, default=None)

    def offsets(self, topic: str, partitions: list[int], spec: OffsetSpec) -> dict[int, int]:
        """Offsets of partitions.

        Raises:
            TidemillError: Kafka does not tell.
        """
        wanted = {TopicPartition(topic, partition): spec for partition in partitions}
        try:
            asked = self.kafka.list_offsets(wanted, request_timeout=_SECONDS) if wanted else {}
            return {at.partition: future.result(_SECONDS + 5.0).offset for at, future in asked.items()}
        except (KafkaException, FutureTimeout) as error:
            raise TidemillError(
                Reason.UNREACHABLE, f"reading offsets of topic {topic}: Kafka does not tell ({error})"
            ) from error


EARLIEST, LATEST = OffsetSpec.earliest(), OffsetSpec.latest()
