"""Change the replicas of live topics in steps, with a throttle that is removed at the end."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from confluent_kafka import ElectionType, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import ResourceType

from tidemill_operator.actuators.kafka.moves import KafkaMoves, moves
from tidemill_operator.actuators.kafka.session import KafkaSession
from tidemill_operator.errors import TidemillError
from tidemill_operator.plan.kafka.placement import Brokers
from tidemill_operator.plan.kafka.replication import (
    FOLLOWERS,
    LEADERS,
    Held,
    ReplicaChange,
    Step,
    Wish,
    is_calm,
    next_step,
)

log = logging.getLogger(__name__)
RATES = ("leader.replication.throttled.rate", "follower.replication.throttled.rate")
THROTTLE_BYTES = 50_000_000


@dataclass(frozen=True)
class Advance:
    """The result of one step of a change of replicas.

    Attributes:
        change: change of replicas that is not complete yet, or None.
        writes: number of writes to Kafka.
    """

    change: ReplicaChange | None = None
    writes: int = 0


def held(described: Any) -> Mapping[int, Held]:
    """Return the replicas of each partition from Kafka's description of a topic."""
    return {
        partition.id: Held(
            replicas=tuple(node.id for node in partition.replicas),
            in_sync=frozenset(node.id for node in partition.isr),
        )
        for partition in described.partitions
    }


class Replication:
    """The actuator that changes the replicas of topics."""

    def __init__(self, session: KafkaSession, *, throttle_bytes: int = THROTTLE_BYTES) -> None:
        self._session, self._rate = session, throttle_bytes

    def advance(
        self,
        topic: str,
        partitions: Mapping[int, Held],
        config: Mapping[str, str],
        wish: Wish,
        *,
        leaving: frozenset[int] = frozenset(),
    ) -> Advance:
        """Take the next step of changing a topic's replicas.

        Raises:
            TidemillError: Kafka does not answer, or refuses.
        """
        ours = bool(config.get(LEADERS))
        if is_calm(partitions, wish, ours=ours):
            return Advance()
        brokers = Brokers(self._racks(), leaving)
        with moves(self._session.config, self._session.timeout) as moving:
            reassignments = moving.of(topic, sorted(partitions))
            seen = {
                number: replace(partition, replicas=at.replicas, coming=at.coming, going=at.going)
                if (at := reassignments.get(number))
                else partition
                for number, partition in partitions.items()
            }
            step = next_step(topic, seen, wish, brokers, ours=ours)
            return Advance(step.change, self._take(topic, step, config, brokers, moving))

    def relieve(self) -> None:
        """Remove the brokers' throttle if no replica is moving.

        Raises:
            TidemillError: Kafka does not answer, or refuses.
        """
        with moves(self._session.config, self._session.timeout) as moving:
            self._free(Brokers(self._racks()), moving)

    def _take(self, topic: str, step: Step, config: Mapping[str, str], brokers: Brokers, moving: KafkaMoves) -> int:
        writes = 0
        if step.cancel:
            moving.move(topic, dict.fromkeys(step.cancel))
            writes += 1
        if step.throttled:
            writes += self._slow(topic, step, config, brokers)
        if step.start:
            moving.move(topic, step.start)
            writes += 1
        if step.elect:
            writes += self._elect(topic, step.elect)
        if step.finish:
            writes += self._free(brokers, moving)
            # Remove LEADERS last, because the config LEADERS marks an unfinished change.
            self._session.set_configs(ResourceType.TOPIC, topic, {LEADERS: None, FOLLOWERS: None})
            self._session.settle(lambda: not self._session.configs(ResourceType.TOPIC, [topic])[topic].get(LEADERS))
            writes += 1
        return writes

    def _slow(self, topic: str, step: Step, config: Mapping[str, str], brokers: Brokers) -> int:
        writes = 0
        for broker, rates in self._rates(brokers).items() if self._rate else ():
            # Do not overwrite a replication throttle that a user has set.
            if lacking := {key: str(self._rate) for key in RATES if not rates.get(key)}:
                self._session.set_configs(ResourceType.BROKER, broker, lacking)
                writes += 1
        if step.start and any(config.get(key) != value for key, value in step.throttled.items()):
            self._session.set_configs(ResourceType.TOPIC, topic, step.throttled)
            writes += 1
        return writes

    def _free(self, brokers: Brokers, moving: KafkaMoves) -> int:
        if not self._rate or moving.any():
            return 0
        writes = 0
        for broker, rates in self._rates(brokers).items():
            if ours := {key: None for key in RATES if rates.get(key) == str(self._rate)}:
                self._session.set_configs(ResourceType.BROKER, broker, ours)
                writes += 1
        return writes

    def _rates(self, brokers: Brokers) -> Mapping[str, Mapping[str, str]]:
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
        with self._session.told(f"electing leaders of topic {topic}"):
            # confluent-kafka 2.12 raises SystemError if `elect_leaders` gets a timeout argument.
            errors = self._session.wait(self._session.admin().elect_leaders(ElectionType.PREFERRED, wanted))
        for at, error in errors.items():
            if isinstance(error, KafkaException) and error.args[0].code() != KafkaError.ELECTION_NOT_NEEDED:
                log.warning("topic %s, partition %s keeps its leader: %s", topic, at.partition, error)
        return 1

    def _racks(self) -> Mapping[int, str | None]:
        with self._session.told("describing the cluster"):
            described = self._session.wait(
                self._session.admin().describe_cluster(request_timeout=self._session.timeout)
            )
        return {node.id: node.rack for node in described.nodes}
