"""Reads the figures for scaling: partitions in Kafka and Postgres, the consumer group, and what Postgres waits for.

The positions of processors come from `_offsets`, because they are committed there together with the results. The
positions of a Python stage come from its consumer group, because the stage commits them there together with its
records.
"""

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
# A single sample of what Postgres waits for proves little, so take several. Nearly all must show waits.
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
    """What to read to get a pipeline's figures.

    Attributes:
        schema: the pipeline's schema in Postgres.
        topic: the topic that the processors read.
        group: the processors' consumer group.
        writer: the processors' role in Postgres, or the common prefix of their roles.
        namespace: the pipeline's namespace.
        kafka: the cluster of the source topic, or None for the platform's own.
        listed: whether the pipeline reads a list of topics.
    """

    schema: str
    topic: str
    group: str
    writer: str
    namespace: str = ""
    kafka: KafkaSpec | None = None
    listed: bool = False

    @classmethod
    def of(cls, config: PipelineConfig) -> Watched:
        """Return what to read for a running pipeline."""
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
    """What to read to get the figures of a Python stage.

    Attributes:
        key: the pipeline, without its uid.
        topic: the source topic, which the stage reads.
        partitions: the number of the topic's partitions.
        group: the stage's consumer group.
    """

    key: Key
    topic: str
    partitions: int
    group: str

    @classmethod
    def of(cls, config: PipelineConfig) -> WatchedStage:
        """Return what to read for a running stage."""
        key = Key(config.namespace, config.name, "")
        partitions = config.spec.source.topic.partitions or 1
        return cls(key, config.events_topic, partitions, names.consumer_group(config.namespace, config.name, "stage"))


class FiguresReader:
    """Reads figures. Several threads may use it.

    Args:
        brokers: bootstrap brokers.
        postgres: the database and its administrator's login.
        config: further client settings of Kafka.
        clusters: connects to the clusters of sources elsewhere, or None if there are none.
    """

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

        For processors, the call takes half a second, because Postgres is sampled several times.

        Args:
            watched: what to read.
            ready: number of ready replicas.
            rolling_out: whether replicas are being started, stopped or replaced.

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
            # Read positions before ends, so that the lag is never negative. Read both close together: events that
            # arrive in between count as lag, and make idle replicas look busy.
            positions = read_positions(session, watched.schema, slots=watched.listed)
        partitions = partitions_of(log, watched.topic, positions)
        arrived = log.arrivals({positions[n].at(watched.topic, n): at for n, at in oldest(partitions).items()})
        places = {positions[number].at(watched.topic, number): number for number in partitions}
        ages = {places[at]: max(0.0, time.time() - moment / 1000) for at, moment in arrived.items() if moment}
        for at, moment in arrived.items():
            if moment is None:  # only transaction markers follow the position, so there is no lag
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
        """Return the figures of a stage. Records that the stage has not written count as its lag."""
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
    """Return whether the members of a consumer group are changing."""
    group = describe_group(log.config, name, _SECONDS)
    return group.moving or group.members != ready


def together(partitions: Partitions, positions: Mapping[int, Position]) -> Partitions:
    """Add up the figures of a list of topics, as if all partitions with the same number were one partition.

    Kafka's range assignor gives the partitions with the same number to the same processor, if the topics have equally
    many partitions. So it is useless to run more processors than the largest topic has partitions.
    """
    found: Partitions = {}
    for slot, at in partitions.items():
        number = positions[slot].at("", slot)[1]
        known = found.get(number)
        if known is None:
            found[number] = replace(at, position=at.start if at.position is None else at.position)
        else:
            found[number] = PartitionFigures(
                known.start + at.start,
                known.end + at.end,
                (known.position or 0) + (at.start if at.position is None else max(at.position, at.start)),
                known.consumed + at.consumed,
            )
    return found


def _saturated(session: Session, writer: str, *, replicas: int) -> bool:
    """Return whether Postgres is the bottleneck, so that more replicas would only wait for it.

    This is so if in nearly every sample at least half of the replicas wait, or if Postgres runs out of sessions.
    Replicas wait for the disk, or for locks, because batches of the same aggregation are merged one after another.
    """
    looks = 0
    for look in range(_LOOKS):
        if look:
            time.sleep(_LOOK_SECONDS)
        ((waiting, sessions, most),) = session.connection.execute(_WAITS, (writer,)).fetchall()
        if sessions >= _FULL_SHARE * most:
            return True
        looks += waiting >= max(2, replicas / 2)
    return looks >= _WAITING_LOOKS
