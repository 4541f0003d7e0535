"""Create, change and delete topics as the plan requires."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import NewPartitions, NewTopic, ResourceType

from tidemill_operator import outcome
from tidemill_operator.actuators.base import Reclaim
from tidemill_operator.actuators.kafka.missing_topics import find_missing_topics
from tidemill_operator.actuators.kafka.replication import (
    THROTTLE_BYTES_PER_SECOND,
    Replication,
    StepResult,
    replicas_by_partition,
)
from tidemill_operator.actuators.kafka.session import KafkaSession
from tidemill_operator.errors import Reason, TidemillError
from tidemill_operator.outcome import Component, Outcome
from tidemill_operator.plan.kafka.replication import (
    IN_SYNC,
    THROTTLED_LEADERS,
    PartitionReplicas,
    ReplicaRequest,
    Spread,
    replicas_in_sync,
)
from tidemill_operator.plan.live import LiveTopic
from tidemill_operator.plan.model import Topic
from tidemill_operator.plan.refusals import deleted_topic_error, missing_topic_error

log = logging.getLogger(__name__)
_REQUEST_SECONDS = 15.0
_OFFSETS_TOPIC = "__consumer_offsets"
_UNKNOWN_TOPIC = KafkaError.UNKNOWN_TOPIC_OR_PART


class KafkaTopics:
    """A thread-safe actuator for the topics of one Kafka cluster.

    `throttle_bytes` limits the movement of replicas, in bytes per second and broker. 0 means no limit.
    `offsets_replicas` is the replication factor of `__consumer_offsets`. 0 leaves that topic unchanged.
    """

    def __init__(
        self,
        brokers: str,
        *,
        config: Mapping[str, Any] | None = None,
        timeout_seconds: float = _REQUEST_SECONDS,
        throttle_bytes: int = THROTTLE_BYTES_PER_SECOND,
        offsets_replicas: int = 0,
    ) -> None:
        self._offsets_replicas = offsets_replicas
        self._session = KafkaSession(brokers, config or {}, timeout_seconds)
        self._replication = Replication(self._session, throttle_bytes=throttle_bytes)

    def broker_count(self) -> int:
        """Return the number of brokers that answer.

        Raises:
            TidemillError: Kafka does not answer.
        """
        session = self._session
        with session.translate_errors("describing the cluster"):
            described = session.wait(session.admin().describe_cluster(request_timeout=session.timeout))
        return len(described.nodes)

    def names(self) -> list[str]:
        """List all topic names.

        Raises:
            TidemillError: Kafka does not answer.
        """
        return self._session.names()

    def observe(self, names: Sequence[str]) -> Mapping[str, LiveTopic]:
        """Return the existing topics by name.

        Raises:
            TidemillError: Kafka does not answer, or its brokers disagree on which topics exist.
        """
        return {name: live_topic(description) for name, description in self._session.describe_existing(names).items()}

    def find_missing(self, names: Sequence[str]) -> frozenset[str]:
        """Return the topics that every broker reports as missing."""
        return find_missing_topics(self._session.config, names, self._session.timeout)

    def configs(self, names: Sequence[str]) -> Mapping[str, Mapping[str, str]]:
        """Return all config values of existing topics.

        Raises:
            TidemillError: Kafka does not answer, or refuses.
        """
        return self._session.configs(ResourceType.TOPIC, list(names))

    def ensure(self, topics: Sequence[Topic], *, spread: Spread | None = None) -> list[Outcome]:
        """Make the topics match the plan, and return one outcome for each topic.

        Args:
            topics: the topics of the plan.
            spread: how to spread the replicas over the brokers, or None to move replicas only if necessary.

        Raises:
            TidemillError: Kafka does not answer.
        """
        live = self._session.describe_topics([topic.name for topic in topics])
        configs = self.configs([topic.name for topic in topics if topic.managed and topic.name in live])
        outcomes = []
        for topic in topics:
            try:
                outcomes.append(self._ensure(topic, live.get(topic.name), configs.get(topic.name, {}), spread))
            except TidemillError as error:
                outcomes.append(outcome.failed(Component.TOPICS, topic.name, error))
        if self._offsets_replicas:
            self._replicate_offsets_topic()
        return outcomes

    def _replicate_offsets_topic(self) -> None:
        try:
            description = self._session.describe_topics([_OFFSETS_TOPIC]).get(_OFFSETS_TOPIC)
            if description is None:
                return
            partitions, config = replicas_by_partition(description), self.configs([_OFFSETS_TOPIC])[_OFFSETS_TOPIC]
            replicas = max(len(partition.replicas) for partition in partitions.values())
            if replicas > self._offsets_replicas and not config.get(THROTTLED_LEADERS):
                return
            step = self._replication.advance(_OFFSETS_TOPIC, partitions, config, ReplicaRequest(self._offsets_replicas))
            if step.change:
                log.info("topic %s: %s", _OFFSETS_TOPIC, step.change.message)
        except TidemillError as error:
            log.warning("%s", error)

    def release(self, topics: Sequence[Topic], reclaim: Reclaim) -> list[Outcome]:
        """Delete the topics that the operator manages, if `reclaim` is "Delete".

        Raises:
            TidemillError: Kafka does not answer.
        """
        deleted = [topic.name for topic in topics if topic.managed and reclaim == "Delete"]
        existing = self.observe(deleted)
        moving = [name for name, config in self.configs(list(existing)).items() if config.get(THROTTLED_LEADERS)]
        outcomes = []
        for topic in topics:
            if topic.name not in deleted:
                outcomes.append(outcome.skipped(Component.TOPICS, topic.name, message="kept"))
            elif topic.name not in existing:
                outcomes.append(outcome.done(Component.TOPICS, topic.name))
            else:
                self._delete(topic.name)
                outcomes.append(outcome.done(Component.TOPICS, topic.name, changed=1))
        if moving:
            self._replication.remove_throttle()
        return outcomes

    def _delete(self, name: str) -> None:
        session = self._session
        with session.translate_errors(f"deleting topic {name}"):
            futures = session.admin().delete_topics([name], request_timeout=session.timeout)
            session.wait_all(futures, ignored_codes=(_UNKNOWN_TOPIC,))
        log.info("topic %s: deleted", name)
        session.wait_until(lambda: name not in self.observe([name]))

    def _ensure(self, topic: Topic, description: Any, config: Mapping[str, str], spread: Spread | None) -> Outcome:
        if description is None:
            if (topic.lost or not topic.managed) and self._session.known_to_controller([topic.name]):
                return _report(topic, None, 0)
            if not topic.managed:
                raise missing_topic_error(topic)
            if topic.lost:
                raise deleted_topic_error(topic)
            return self._create(topic, spread)
        if not topic.managed:
            return _report(topic, live_topic(description), 0)
        live, changed = live_topic(description), 0
        _check_partitions(topic, live)
        if live.partitions < topic.partitions:
            description = self._add_partitions(topic) or description
            changed += 1
        partitions = replicas_by_partition(description)
        now, later = _drift(topic, config)
        confirmed = self._repair(topic.name, now)
        step = self._advance(topic, partitions, config, spread)
        if later and replicas_in_sync(partitions) >= int(later[IN_SYNC]):
            confirmed &= self._repair(topic.name, later)
            now, later = now | later, {}
        changed += len(now) + step.writes
        return _report(
            topic, live_topic(description), changed, step, later.get(IN_SYNC), unconfirmed=() if confirmed else now
        )

    def _advance(
        self,
        topic: Topic,
        partitions: Mapping[int, PartitionReplicas],
        config: Mapping[str, str],
        spread: Spread | None,
    ) -> StepResult:
        request = ReplicaRequest(
            topic.replication_factor if topic.enforces_replication else None, rebalance=spread is not None
        )
        leaving = spread.leaving if spread else frozenset()
        return self._replication.advance(topic.name, partitions, config, request, leaving=leaving)

    def _create(self, topic: Topic, spread: Spread | None) -> Outcome:
        brokers = self.broker_count()
        if topic.replication_factor > brokers:
            raise TidemillError(
                Reason.INVALID_SPEC,
                f"topic {topic.name}: replication factor {topic.replication_factor} needs {topic.replication_factor}"
                f" brokers, but only {'1 is' if brokers == 1 else f'{brokers} are'} available",
                f"set spec.source.topic.replicationFactor to at most {brokers}",
            )
        created = self._request(topic)
        description = self._wait_for_topic(topic)
        if created:
            log.info("topic %s: created with %d partitions", topic.name, topic.partitions)
            live = live_topic(description) if description else None
            confirmed = live and self._session.wait_until(lambda: self._session.has_config(topic.name, topic.config))
            return _report(topic, live, 1, unconfirmed=() if confirmed else topic.config)
        if description is None:
            return _report(topic, None, 0)
        # The topic already exists, although `observe` did not find the topic.
        return self._ensure(topic, description, self.configs([topic.name])[topic.name], spread)

    def _request(self, topic: Topic) -> bool:
        """Ask Kafka to create a topic. Return False if the topic already exists."""
        wanted = NewTopic(topic.name, topic.partitions, topic.replication_factor, config=dict(topic.config))
        session = self._session
        with session.translate_errors(f"creating topic {topic.name}"):
            try:
                session.wait_all(session.admin().create_topics([wanted], request_timeout=session.timeout))
            except KafkaException as error:
                if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                    raise
                return False
        return True

    def _add_partitions(self, topic: Topic) -> Any:
        session = self._session
        with session.translate_errors(f"adding partitions to topic {topic.name}"):
            wanted = NewPartitions(topic.name, topic.partitions)
            session.wait_all(session.admin().create_partitions([wanted], request_timeout=session.timeout))
        log.info("topic %s: now has %d partitions", topic.name, topic.partitions)
        return self._wait_for_topic(topic)

    def _repair(self, name: str, drift: Mapping[str, str]) -> bool:
        if not drift:
            return True
        log.info("topic %s: %s", name, ", ".join(f"{key} is {value} from now on" for key, value in drift.items()))
        return self._session.set_configs(ResourceType.TOPIC, name, drift)

    def _wait_for_topic(self, topic: Topic) -> Any:
        """Wait up to 15 seconds until a topic has all its partitions.

        Returns the description of the topic, or None if no broker reports the topic.
        """
        descriptions: dict[str, Any] = {}

        def has_partitions() -> bool:
            descriptions.update(self._session.describe_topics([topic.name]))
            return topic.name in descriptions and len(descriptions[topic.name].partitions) >= topic.partitions

        self._session.wait_until(has_partitions)
        return descriptions.get(topic.name)


def live_topic(description: Any) -> LiveTopic:
    """Convert confluent-kafka's description of a topic to a `LiveTopic`."""
    replicas = [[node.id for node in partition.replicas] for partition in description.partitions]
    return LiveTopic(
        partitions=len(replicas),
        replication_factor=min((len(brokers) for brokers in replicas), default=0),
        id=str(description.topic_id),
        replica_brokers=frozenset(broker for brokers in replicas for broker in brokers),
    )


def _check_partitions(topic: Topic, live: LiveTopic) -> None:
    if live.partitions > topic.partitions:
        raise TidemillError(
            Reason.NOT_SUPPORTED,
            f"topic {topic.name} has {live.partitions} partitions and {topic.partitions} are requested;"
            " Kafka cannot remove partitions",
            f"set spec.source.topic.partitions to {live.partitions} or more",
        )


def _drift(topic: Topic, config: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """Return the configs to set now, and the configs to set once enough replicas are in sync."""
    drift = {key: value for key, value in topic.config.items() if config.get(key) != value}
    wanted, current = drift.get(IN_SYNC, ""), config.get(IN_SYNC, "")
    if wanted.isdigit() and current.isdigit() and int(wanted) > int(current):
        return {key: value for key, value in drift.items() if key != IN_SYNC}, {IN_SYNC: wanted}
    return drift, {}


def _report(
    topic: Topic,
    live: LiveTopic | None,
    changed: int,
    step: StepResult | None = None,
    in_sync: str | None = None,
    *,
    unconfirmed: Collection[str] = (),
) -> Outcome:
    if live is None or (live.partitions < topic.partitions and topic.managed):
        text = f"topic {topic.name} is being created" if live is None else f"topic {topic.name} gets more partitions"
        return outcome.waiting(Component.TOPICS, topic.name, text, changed=changed, serving=live is not None)
    observed: dict[str, Any] = {"id": live.id, "partitions": live.partitions}
    observed["replicationFactor"] = live.replication_factor
    facts: dict[str, Any] = {"changed": changed, "observed": observed}
    change = step.change if step else None
    if change:
        replicas_change = {"targetReplicas": change.target, "state": change.state, "message": change.message}
        observed["replicasChange"] = replicas_change
        text = f"topic {topic.name}: {change.message}"
        return outcome.waiting(Component.TOPICS, topic.name, text, serving=True, **facts)
    if unconfirmed:
        text = f"topic {topic.name}: {', '.join(sorted(unconfirmed))} set; Kafka does not show the change yet"
        return outcome.waiting(Component.TOPICS, topic.name, text, serving=True, **facts)
    if in_sync:
        text = f"topic {topic.name}: {IN_SYNC} becomes {in_sync} once every partition has enough in-sync replicas"
        return outcome.waiting(Component.TOPICS, topic.name, text, serving=True, **facts)
    return outcome.done(Component.TOPICS, topic.name, **facts)
