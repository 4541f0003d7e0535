"""Read the figures for scaling from Kafka and Postgres."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from tidemill_contract import names
from tidemill_contract.resource.kinds.kafka import KafkaSpec
from tidemill_contract.runtime import PipelineConfig
from tidemill_operator.actuators.kafka.clusters import Clusters
from tidemill_operator.actuators.kafka.groups import describe_group
from tidemill_operator.actuators.kafka.log import KafkaLog
from tidemill_operator.actuators.postgres.session import Session, connected
from tidemill_operator.addresses import PostgresAddress
from tidemill_operator.errors import Reason, TidemillError
from tidemill_operator.keys import Key
from tidemill_operator.observer.backlog import (
    Partitions,
    Position,
    freshness_seconds,
    oldest,
    partitions_of,
    read_positions,
)
from tidemill_operator.observer.stages import Stages
from tidemill_operator.scaling import Figures, PartitionFigures

_SECONDS = 10.0
# Postgres is saturated if replicas wait for Postgres in at least 4 of 5 samples.
_LOOKS, _LOOK_SECONDS, _WAITING_LOOKS = 5, 0.1, 4
_FULL_SHARE = 0.9
_WAITS = """
SELECT count(*) FILTER (WHERE starts_with(usename, %s) AND state = 'active'
                          AND wait_event_type IN ('Lock', 'LWLock', 'IO', 'IPC', 'BufferPin')),
       count(*) FILTER (WHERE backend_type = 'client backend'),
       current_setting('max_connections')::integer - current_setting('superuser_reserved_connections')::integer
  FROM pg_stat_activity"""


@dataclass(frozen=True)
class Watched:
    """The schema, topic, consumer group and database role from which figures of a pipeline are read."""

    schema: str
    topic: str
    group: str
    writer: str
    namespace: str = ""
    kafka: KafkaSpec | None = None
    listed: bool = False

    @classmethod
    def of(cls, config: PipelineConfig) -> Watched:
        """Return which topic, consumer group and schema to measure for a pipeline."""
        group = names.consumer_group(config.namespace, config.name)
        return cls(
            config.schema_name,
            config.read_topic,
            group,
            names.role(config.schema_name, "writer"),
            config.namespace,
            config.spec.source.kafka,
            config.spec.source.several,
        )


@dataclass(frozen=True)
class WatchedStage:
    """The topic and consumer group from which figures of a Python stage are read."""

    key: Key
    topic: str
    partitions: int
    group: str

    @classmethod
    def of(cls, config: PipelineConfig) -> WatchedStage:
        """Return which topic and consumer group to measure for the Python stage of a pipeline."""
        key = Key(config.namespace, config.name, "")
        partitions = config.spec.source.topic.partitions or 1
        return cls(key, config.events_topic, partitions, names.consumer_group(config.namespace, config.name, "stage"))


class FiguresReader:
    """A thread-safe reader of figures for scaling."""

    def __init__(
        self,
        brokers: str,
        postgres: PostgresAddress,
        *,
        config: Mapping[str, Any] | None = None,
        clusters: Clusters | None = None,
    ) -> None:
        self._postgres, self._clusters = postgres, clusters
        self._own = KafkaLog(brokers, config=config)

    def read(self, watched: Watched | WatchedStage, *, ready: int, rolling_out: bool) -> Figures:
        """Return the current figures.

        Args:
            watched: what to read.
            ready: number of ready replicas.
            rolling_out: whether replicas are being started or stopped.

        Raises:
            TidemillError: a server does not answer, or the schema or topic does not exist yet.
        """
        if isinstance(watched, WatchedStage):
            return self._staging(watched, ready=ready, rolling_out=rolling_out)
        log = self._own
        if watched.kafka is not None and self._clusters is not None:
            log = self._clusters.open(watched.namespace, watched.kafka).log
        with connected(self._postgres, f"reading figures of schema {watched.schema}") as session:
            session.connection.hurry(_SECONDS)
            saturated = _saturated(session, watched.writer, replicas=ready)
            # Query the positions first and the end offsets later, so that no lag is negative.
            positions = read_positions(session, watched.schema, slots=watched.listed)
        partitions = partitions_of(log, watched.topic, positions)
        arrived = log.arrivals({positions[n].at(watched.topic, n): at for n, at in oldest(partitions).items()})
        places = {positions[number].at(watched.topic, number): number for number in partitions}
        ages = {places[at]: max(0.0, time.time() - moment / 1000) for at, moment in arrived.items() if moment}
        for at, moment in arrived.items():
            if moment is None:  # the unread records are only transaction markers, which are not events
                number = places[at]
                partitions[number] = replace(partitions[number], position=partitions[number].end)
        return Figures(
            together(partitions, positions) if watched.listed else partitions,
            ready=ready,
            rebalancing=_rebalancing(log, watched.group, ready),
            rolling_out=rolling_out,
            database_saturated=saturated,
            freshness_seconds=freshness_seconds(positions, ages),
        )

    def _staging(self, watched: WatchedStage, *, ready: int, rolling_out: bool) -> Figures:
        key, numbers = watched.key, range(watched.partitions)
        look = Stages(self._own).look({key: watched.topic}, {key: numbers})[key]
        if look.fault:
            raise TidemillError(Reason.UNREACHABLE, look.fault)
        partitions = {
            number: PartitionFigures(at, at + look.lag[number], at, consumed=at)
            for number, at in look.positions.items()
        }
        return Figures(
            partitions,
            ready=ready,
            rebalancing=_rebalancing(self._own, watched.group, ready),
            rolling_out=rolling_out,
            freshness_seconds=max(look.ages.values(), default=None),
            waits=bool(look.waits),
        )


def _rebalancing(log: KafkaLog, name: str, ready: int) -> bool:
    group = describe_group(log.config, name, _SECONDS)
    return group.moving or group.members != ready


def together(partitions: Partitions, positions: Mapping[int, Position]) -> Partitions:
    """Add up the figures of partitions that have the same number in different topics.

    Across topics, Kafka's range assignor gives partitions with the same number to one processor.
    """
    totals: Partitions = {}
    for slot, at in partitions.items():
        number = positions[slot].at("", slot)[1]
        total = totals.get(number)
        if total is None:
            totals[number] = replace(at, position=at.start if at.position is None else at.position)
        else:
            totals[number] = PartitionFigures(
                total.start + at.start,
                total.end + at.end,
                (total.position or 0) + (at.start if at.position is None else max(at.position, at.start)),
                total.consumed + at.consumed,
            )
    return totals


def _saturated(session: Session, writer: str, *, replicas: int) -> bool:
    """Return whether Postgres is the bottleneck: replicas wait for Postgres, or nearly all sessions are in use."""
    looks = 0
    for look in range(_LOOKS):
        if look:
            time.sleep(_LOOK_SECONDS)
        ((waiting, sessions, most),) = session.connection.execute(_WAITS, (writer,)).fetchall()
        if sessions >= _FULL_SHARE * most:
            return True
        looks += waiting >= max(2, replicas / 2)
    return looks >= _WAITING_LOOKS
