"""Change the replicas of live topics in steps, with a throttle that is removed at the end."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from confluent_kafka import ElectionType, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import ResourceType

from tidemill_operator.actuators.kafka.reassignments import Reassignment, Reassignments, open_reassignments
from tidemill_operator.actuators.kafka.session import KafkaSession
from tidemill_operator.errors import TidemillError
from tidemill_operator.plan.kafka.placement import Brokers
from tidemill_operator.plan.kafka.replication import (
    THROTTLED_FOLLOWERS,
    THROTTLED_LEADERS,
    PartitionReplicas,
    ReplicaChange,
    ReplicaRequest,
    Step,
    is_settled,
    next_step,
)

log = logging.getLogger(__name__)
RATE_CONFIGS = ("leader.replication.throttled.rate", "follower.replication.throttled.rate")
THROTTLE_BYTES_PER_SECOND = 50_000_000


@dataclass(frozen=True)
class StepResult:
    """The result of one step of a change of replicas.

    Attributes:
        change: change of replicas that is not complete yet, or None.
        writes: number of writes to Kafka.
    """

    change: ReplicaChange | None = None
    writes: int = 0


def replicas_by_partition(description: Any) -> Mapping[int, PartitionReplicas]:
    """Return the replicas of each partition from Kafka's description of a topic."""
    return {
        partition.id: PartitionReplicas(
            replicas=tuple(node.id for node in partition.replicas),
            in_sync=frozenset(node.id for node in partition.isr),
        )
        for partition in description.partitions
    }


def _with_reassignment(partition: PartitionReplicas, reassignment: Reassignment | None) -> PartitionReplicas:
    if reassignment is None:
        return partition
    return replace(
        partition, replicas=reassignment.replicas, adding=reassignment.adding, removing=reassignment.removing
    )


class Replication:
    """The actuator that changes the replicas of topics."""

    def __init__(self, session: KafkaSession, *, throttle_bytes: int = THROTTLE_BYTES_PER_SECOND) -> None:
        self._session, self._rate = session, throttle_bytes

    def advance(
        self,
        topic: str,
        partitions: Mapping[int, PartitionReplicas],
        config: Mapping[str, str],
        request: ReplicaRequest,
        *,
        leaving: frozenset[int] = frozenset(),
    ) -> StepResult:
        """Take the next step of changing a topic's replicas.

        Raises:
            TidemillError: Kafka does not answer, or refuses.
        """
        started_by_us = bool(config.get(THROTTLED_LEADERS))
        if is_settled(partitions, request, started_by_us=started_by_us):
            return StepResult()
        brokers = Brokers(self._racks(), leaving)
        with open_reassignments(self._session.config, self._session.timeout) as client:
            reassignments = client.in_progress(topic, sorted(partitions))
            current = {
                number: _with_reassignment(partition, reassignments.get(number))
                for number, partition in partitions.items()
            }
            step = next_step(topic, current, request, brokers, started_by_us=started_by_us)
            return StepResult(step.change, self._execute(topic, step, config, brokers, client))

    def remove_throttle(self) -> None:
        """Remove the brokers' throttle if no replica is moving.

        Raises:
            TidemillError: Kafka does not answer, or refuses.
        """
        with open_reassignments(self._session.config, self._session.timeout) as client:
            self._reset_throttle_rates(Brokers(self._racks()), client)

    def _execute(
        self, topic: str, step: Step, config: Mapping[str, str], brokers: Brokers, client: Reassignments
    ) -> int:
        writes = 0
        if step.cancel:
            client.move(topic, dict.fromkeys(step.cancel))
            writes += 1
        if step.throttled:
            writes += self._set_throttle(topic, step, config, brokers)
        if step.start:
            client.move(topic, step.start)
            writes += 1
        if step.elect:
            writes += self._elect(topic, step.elect)
        if step.finish:
            writes += self._reset_throttle_rates(brokers, client)
            # Remove these configs last, because THROTTLED_LEADERS marks an unfinished change.
            self._session.set_configs(ResourceType.TOPIC, topic, {THROTTLED_LEADERS: None, THROTTLED_FOLLOWERS: None})
            self._session.wait_until(
                lambda: not self._session.configs(ResourceType.TOPIC, [topic])[topic].get(THROTTLED_LEADERS)
            )
            writes += 1
        return writes

    def _set_throttle(self, topic: str, step: Step, config: Mapping[str, str], brokers: Brokers) -> int:
        writes = 0
        for broker, rates in self._broker_configs(brokers).items() if self._rate else ():
            # Do not overwrite a replication throttle that a user has set.
            if missing := {key: str(self._rate) for key in RATE_CONFIGS if not rates.get(key)}:
                self._session.set_configs(ResourceType.BROKER, broker, missing)
                writes += 1
        if step.start and any(config.get(key) != value for key, value in step.throttled.items()):
            self._session.set_configs(ResourceType.TOPIC, topic, step.throttled)
            writes += 1
        return writes

    def _reset_throttle_rates(self, brokers: Brokers, client: Reassignments) -> int:
        if not self._rate or client.any_in_progress():
            return 0
        writes = 0
        for broker, rates in self._broker_configs(brokers).items():
            if removals := {key: None for key in RATE_CONFIGS if rates.get(key) == str(self._rate)}:
                self._session.set_configs(ResourceType.BROKER, broker, removals)
                writes += 1
        return writes

    def _broker_configs(self, brokers: Brokers) -> Mapping[str, Mapping[str, str]]:
        configs: dict[str, Mapping[str, str]] = {}
        for broker in sorted(brokers.racks):
            try:
                configs |= self._session.configs(ResourceType.BROKER, [str(broker)])
            except TidemillError as error:
                # A broker may be down, so continue with the other brokers.
                log.warning("broker %s: %s", broker, error)
        return configs

    def _elect(self, topic: str, partitions: tuple[int, ...]) -> int:
        wanted = [TopicPartition(topic, number) for number in partitions]
        with self._session.translate_errors(f"electing leaders of topic {topic}"):
            # confluent-kafka 2.12 raises SystemError if `elect_leaders` gets a timeout argument.
            errors = self._session.wait(self._session.admin().elect_leaders(ElectionType.PREFERRED, wanted))
        for at, error in errors.items():
            if isinstance(error, KafkaException) and error.args[0].code() != KafkaError.ELECTION_NOT_NEEDED:
                log.warning("topic %s, partition %s keeps its leader: %s", topic, at.partition, error)
        return 1

    def _racks(self) -> Mapping[int, str | None]:
        with self._session.translate_errors("describing the cluster"):
            described = self._session.wait(
                self._session.admin().describe_cluster(request_timeout=self._session.timeout)
            )
        return {node.id: node.rack for node in described.nodes}
