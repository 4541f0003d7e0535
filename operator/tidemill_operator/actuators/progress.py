"""How far each partition of pipelines has been counted, and what waits in it: all of them in one look. Reads only."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass
from typing import Any, TypeVar

import psycopg
from confluent_kafka import KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient
from psycopg import sql

from tidemill_operator.actuators.backlog import EARLIEST, LATEST
from tidemill_operator.actuators.postgres_session import connected
from tidemill_operator.errors import Reason, TidemillError
from tidemill_operator.servers.addresses import PostgresAddress

_SECONDS = 5.0
_HURRY = "SET statement_timeout = '5s'"
K = TypeVar("K")


@dataclass(frozen=True)
class Progress:
    """One partition.

    Attributes:
        lag: records from the position to the end.
        read: the position, and when a processor last met the end: past the last record there may be markers of
            transactions, which nobody counts. It changes whenever something moves.
    """

    lag: int
    read: tuple[int | None, int | None]


Look = Mapping[int, Progress] | TidemillError


class ProgressReader:
    """Reads progress; for one thread.

    Args:
        brokers: bootstrap brokers.
        postgres: the database and its administrator's login.
        config: further client settings of Kafka.
    """

    def __init__(self, brokers: str, postgres: PostgresAddress, *, config: Mapping[str, Any] | None = None) -> None:
        self._config = {"bootstrap.servers": brokers, "log_level": 0, **(config or {})}
        self._postgres = postgres
        self._client: AdminClient | None = None

    def read(self, wanted: Mapping[K, tuple[str, str]]) -> dict[K, Look]:
        """Progress by partition, or why it is not known.

        Partitions whose leader does not answer are left out as long as others answer.

        Args:
            wanted: schema and source topic of each pipeline; without a schema it is left out.
        """
        try:
            positions = self._positions({key: schema for key, (schema, _) in wanted.items()})
        except TidemillError as error:
            return dict.fromkeys(wanted, error)
        topics = {key: wanted[key][1] for key in positions}
        ends = self._offsets({TopicPartition(topics[key], p): LATEST for key, at in positions.items() for p in at})
        # From where a partition that was not read yet begins.
        starts = self._offsets({
            TopicPartition(topics[key], p): EARLIEST
            for key, at in positions.items()
            for p, (offset, _) in at.items()
            if offset is None and (topics[key], p) in ends
        })  # fmt: skip
        found: dict[K, Look] = {}
        for key, at in positions.items():
            known = {p: ends[topics[key], p] for p in at if (topics[key], p) in ends}
            found[key] = {
                p: Progress(max(0, end - (at[p][0] or starts.get((topics[key], p), 0))), at[p])
                for p, end in known.items()
            }
            if at and not known:
                text = f"no broker tells how many events are in topic {topics[key]}"
                found[key] = TidemillError(Reason.UNREACHABLE, text, "see whether Kafka's brokers run")
        return found

    def _positions(self, schemas: Mapping[K, str]) -> dict[K, dict[int, tuple[int | None, int | None]]]:
        query = sql.SQL(
            "SELECT partition, next_offset, (extract(epoch FROM end_confirmed_at) * 1000)::bigint"
            " FROM {} WHERE reader = 'live'"
        )
        found = {}
        with connected(self._postgres, "reading positions", timeout_seconds=_SECONDS, read_only=True) as session:
            session.connection.execute(_HURRY)
            for key, schema in schemas.items():
                try:
                    rows = session.connection.execute(query.format(sql.Identifier(schema, "_offsets"))).fetchall()
                except psycopg.ProgrammingError:
                    continue  # it is not there, or not yet
                found[key] = {partition: (offset, confirmed) for partition, offset, confirmed in rows}
        return found

    def _offsets(self, wanted: Mapping[TopicPartition, Any]) -> dict[tuple[str, int], int]:
        """Offsets of those partitions whose leaders answer."""
        if not wanted:
            return {}
        if self._client is None:
            self._client = AdminClient(self._config)
        found = {}
        try:
            asked = self._client.list_offsets(dict(wanted), request_timeout=_SECONDS)
        except KafkaException:
            asked = {}
        for at, future in asked.items():
            try:
                found[at.topic, at.partition] = future.result(_SECONDS + 1.0).offset
            except (KafkaException, FutureTimeout):
                continue
        if len(found) < len(wanted):
            self._client = None  # another one asks who leads now
        return found
