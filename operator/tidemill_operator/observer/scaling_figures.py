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
from tidemill_operator.actuators.kafka.offsets import OffsetReader
from tidemill_operator.actuators.postgres.session import Session, open_session
from tidemill_operator.addresses import PostgresAddress
from tidemill_operator.errors import Reason, TidemillError
from tidemill_operator.keys import Key
from tidemill_operator.observer.backlog import (
    Partitions,
    Position,
    freshness_seconds,
    oldest_offsets,
    read_partitions,
    read_positions,
)
from tidemill_operator.observer.stages import StageReader
from tidemill_operator.scaling import PartitionFigures, ScalingFigures

_SECONDS = 10.0
# Postgres is saturated if replicas wait for Postgres in at least 4 of 5 samples.
_SAMPLES, _SAMPLE_SECONDS, _WAITING_SAMPLES = 5, 0.1, 4
_FULL_SHARE = 0.9
_WAITS = """
SELECT count(*) FILTER (WHERE starts_with(usename, %s) AND state = 'active'
                          AND wait_event_type IN ('Lock', 'LWLock', 'IO', 'IPC', 'BufferPin')),
       count(*) FILTER (WHERE backend_type = 'client backend'),
       current_setting('max_connections')::integer - current_setting('superuser_reserved_connections')::integer
  FROM pg_stat_activity"""


@dataclass(frozen=True)
class MeasuredPipeline:
    """The schema, topic, consumer group and database role from which figures of a pipeline are read."""

    schema: str
    topic: str
    group: str
    writer: str
    namespace: str = ""
    kafka: KafkaSpec | None = None
    multi_topic: bool = False

    @classmethod
    def of(cls, config: PipelineConfig) -> MeasuredPipeline:
        """Return which topic, consumer group and schema to measure for a pipeline."""
        group = names.consumer_group(config.namespace, config.name)
        return cls(
            config.schema_name,
            config.read_topic,
            group,
            names.role(config.schema_name, "writer"),
            config.namespace,
            config.spec.source.kafka,
            config.spec.source.is_multi_topic,
        )


@dataclass(frozen=True)
class MeasuredStage:
    """The topic and consumer group from which figures of a Python stage are read."""

    key: Key
    topic: str
    partitions: int
    group: str

    @classmethod
    def of(cls, config: PipelineConfig) -> MeasuredStage:
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
        self._own = OffsetReader(brokers, config=config)

    def read(self, measured: MeasuredPipeline | MeasuredStage, *, ready: int, rolling_out: bool) -> ScalingFigures:
        """Return the current figures.

        Args:
            measured: what to read.
            ready: number of ready replicas.
            rolling_out: whether replicas are being started or stopped.

        Raises:
            TidemillError: a server does not answer, or the schema or topic does not exist yet.
        """
        if isinstance(measured, MeasuredStage):
            return self._read_stage(measured, ready=ready, rolling_out=rolling_out)
        offset_reader = self._own
        if measured.kafka is not None and self._clusters is not None:
            offset_reader = self._clusters.open(measured.namespace, measured.kafka).offset_reader
        with open_session(self._postgres, f"reading figures of schema {measured.schema}") as session:
            session.connection.set_timeout(_SECONDS)
            saturated = _saturated(session, measured.writer, replicas=ready)
            # Query the positions first and the end offsets later, so that no lag is negative.
            positions = read_positions(session, measured.schema, slots=measured.multi_topic)
        partitions = read_partitions(offset_reader, measured.topic, positions)
        arrived = offset_reader.arrival_times(
            {positions[n].resolve_place(measured.topic, n): at for n, at in oldest_offsets(partitions).items()}
        )
        places = {positions[number].resolve_place(measured.topic, number): number for number in partitions}
        ages = {places[at]: max(0.0, time.time() - moment / 1000) for at, moment in arrived.items() if moment}
        for at, moment in arrived.items():
            if moment is None:  # the unread records are only transaction markers, which are not events
                number = places[at]
                partitions[number] = replace(partitions[number], position=partitions[number].end)
        return ScalingFigures(
            sum_by_partition(partitions, positions) if measured.multi_topic else partitions,
            ready=ready,
            rebalancing=_rebalancing(offset_reader, measured.group, ready),
            rolling_out=rolling_out,
            database_saturated=saturated,
            freshness_seconds=freshness_seconds(positions, ages),
        )

    def _read_stage(self, measured: MeasuredStage, *, ready: int, rolling_out: bool) -> ScalingFigures:
        key, numbers = measured.key, range(measured.partitions)
        progress = StageReader(self._own).read_progress({key: measured.topic}, {key: numbers})[key]
        if progress.fault:
            raise TidemillError(Reason.UNREACHABLE, progress.fault)
        partitions = {
            number: PartitionFigures(at, at + progress.lag[number], at, consumed=at)
            for number, at in progress.positions.items()
        }
        return ScalingFigures(
            partitions,
            ready=ready,
            rebalancing=_rebalancing(self._own, measured.group, ready),
            rolling_out=rolling_out,
            freshness_seconds=max(progress.ages.values(), default=None),
            stage_waits=bool(progress.wait_reason),
        )


def _rebalancing(offset_reader: OffsetReader, name: str, ready: int) -> bool:
    group = describe_group(offset_reader.config, name, _SECONDS)
    return group.rebalancing or group.members != ready


def sum_by_partition(partitions: Partitions, positions: Mapping[int, Position]) -> Partitions:
    """Add up the figures of partitions that have the same number in different topics.

    Across topics, Kafka's range assignor gives partitions with the same number to one processor.
    """
    totals: Partitions = {}
    for slot, at in partitions.items():
        number = positions[slot].resolve_place("", slot)[1]
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
    waiting_samples = 0
    for number in range(_SAMPLES):
        if number:
            time.sleep(_SAMPLE_SECONDS)
        ((waiting, sessions, max_sessions),) = session.connection.execute(_WAITS, (writer,)).fetchall()
        if sessions >= _FULL_SHARE * max_sessions:
            return True
        waiting_samples += waiting >= max(2, replicas / 2)
    return waiting_samples >= _WAITING_SAMPLES
