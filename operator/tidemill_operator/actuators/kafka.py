"""Topics as the plan wants them: created, grown, their configs repaired; never shrunk, never deleted unasked.

Only config keys that the plan names are looked at; what others set besides stays.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import contextmanager
from typing import Any

from confluent_kafka import KafkaError, KafkaException, TopicCollection
from confluent_kafka.admin import (
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewPartitions,
    NewTopic,
    ResourceType,
)

from tidemill_operator import outcome
from tidemill_operator.actuators.base import Reclaim
from tidemill_operator.errors import Reason, TidemillError
from tidemill_operator.outcome import Component, Outcome
from tidemill_operator.plan.model import LiveTopic, Topic
from tidemill_operator.plan.refusals import missing

_REQUEST_SECONDS = 15.0
_SETTLE_SECONDS = 15.0
_ABSENT = KafkaError.UNKNOWN_TOPIC_OR_PART
_GONE = frozenset({
    KafkaError._TIMED_OUT,
    KafkaError._TRANSPORT,
    KafkaError._ALL_BROKERS_DOWN,
    KafkaError._RESOLVE,
    KafkaError.REQUEST_TIMED_OUT,
    KafkaError.NOT_CONTROLLER,
})  # fmt: skip
_WRONG = frozenset({KafkaError.INVALID_CONFIG, KafkaError.INVALID_PARTITIONS, KafkaError.INVALID_REPLICATION_FACTOR})


class KafkaTopics:
    """The topics of one Kafka cluster. Safe to call from several threads.

    Args:
        brokers: bootstrap brokers.
        config: further client settings, e.g. of TLS and SASL.
        timeout_seconds: of each request.
    """

    def __init__(
        self, brokers: str, *, config: Mapping[str, Any] | None = None, timeout_seconds: float = _REQUEST_SECONDS
    ) -> None:
        self._brokers = brokers
        self._timeout = timeout_seconds
        self._config = {"bootstrap.servers": brokers, "log_level": 0, **(config or {})}
        self._client: AdminClient | None = None

    def brokers(self) -> int:
        """How many brokers there are.

        Raises:
            TidemillError: Kafka does not answer.
        """
        with self._told("describing the cluster"):
            described = self._wait(self._admin().describe_cluster(request_timeout=self._timeout))
        return len(described.nodes)

    def observe(self, names: Sequence[str]) -> Mapping[str, LiveTopic]:
        """Those of the topics that exist.

        Raises:
            TidemillError: Kafka does not answer.
        """
        if not names:
            return {}
        found: dict[str, LiveTopic] = {}
        with self._told("describing topics"):
            asked = self._admin().describe_topics(TopicCollection(list(names)), request_timeout=self._timeout)
        for name, future in asked.items():
            with self._told(f"describing topic {name}"):
                try:
                    described = self._wait(future)
                except KafkaException as error:
                    if error.args[0].code() == _ABSENT:
                        continue
                    raise
            replicas = min((len(partition.replicas) for partition in described.partitions), default=0)
            found[name] = LiveTopic(len(described.partitions), replicas, str(described.topic_id))
        return found

    def configs(self, names: Sequence[str]) -> Mapping[str, Mapping[str, str]]:
        """All config values of existing topics.

        Raises:
            TidemillError: Kafka does not answer or does not tell.
        """
        resources = [ConfigResource(ResourceType.TOPIC, name) for name in names]
        if not resources:
            return {}
        found = {}
        with self._told("describing configs"):
            asked = self._admin().describe_configs(resources, request_timeout=self._timeout)
        for resource, future in asked.items():
            with self._told(f"describing the config of topic {resource.name}"):
                found[resource.name] = {key: entry.value or "" for key, entry in self._wait(future).items()}
        return found

    def ensure(self, topics: Sequence[Topic]) -> list[Outcome]:
        """Make the topics so; one outcome each.

        Raises:
            TidemillError: Kafka does not answer.
        """
        live = self.observe([topic.name for topic in topics])
        configs = self.configs([topic.name for topic in topics if topic.managed and topic.name in live])
        outcomes = []
        for topic in topics:
            try:
                outcomes.append(self._ensure(topic, live.get(topic.name), configs.get(topic.name, {})))
            except TidemillError as error:
                outcomes.append(outcome.failed(Component.TOPICS, topic.name, error))
        return outcomes

    def release(self, topics: Sequence[Topic], reclaim: Reclaim) -> list[Outcome]:
        """Delete the managed topics if the policy says so; otherwise leave them.

        Raises:
            TidemillError: Kafka does not answer.
        """
        doomed = [topic.name for topic in topics if topic.managed and reclaim == "Delete"]
        existing = self.observe(doomed)
        outcomes = []
        for topic in topics:
            if topic.name not in doomed:
                outcomes.append(outcome.skipped(Component.TOPICS, topic.name, message="kept"))
            elif topic.name not in existing:
                outcomes.append(outcome.done(Component.TOPICS, topic.name))
            else:
                with self._told(f"deleting topic {topic.name}"):
                    self._each(
                        self._admin().delete_topics([topic.name], request_timeout=self._timeout), okay=(_ABSENT,)
                    )
                self._settle(lambda name=topic.name: name not in self.observe([name]))  # type: ignore[misc]
                outcomes.append(outcome.done(Component.TOPICS, topic.name, changed=1))
        return outcomes

    def _ensure(self, topic: Topic, live: LiveTopic | None, config: Mapping[str, str]) -> Outcome:
        if live is None:
            if not topic.managed:
                raise missing(topic)
            return self._create(topic)
        if topic.managed:
            self._check(topic, live)
        changed = 0
        if topic.managed and live.partitions < topic.partitions:
            with self._told(f"adding partitions to topic {topic.name}"):
                wanted = NewPartitions(topic.name, topic.partitions)
                self._each(self._admin().create_partitions([wanted], request_timeout=self._timeout))
            changed += 1
            live = self._await(topic) or live
        drift = {key: value for key, value in topic.config.items() if config.get(key) != value} if topic.managed else {}
        if drift:
            self._repair(topic.name, drift)
            changed += len(drift)
        return _report(topic, live, changed)

    def _check(self, topic: Topic, live: LiveTopic) -> None:
        if live.partitions > topic.partitions:
            raise TidemillError(
                Reason.NOT_SUPPORTED,
                f"topic {topic.name} has {live.partitions} partitions and {topic.partitions} are asked for;"
                " Kafka cannot take partitions away",
                f"set spec.source.topic.partitions to {live.partitions} or more",
            )
        if live.replication_factor != topic.replication_factor:
            raise TidemillError(
                Reason.NOT_SUPPORTED,
                f"topic {topic.name} has replication factor {live.replication_factor} and {topic.replication_factor} is"
                " asked for; this version cannot change it in place",
                f"set spec.source.topic.replicationFactor to {live.replication_factor}",
            )

    def _create(self, topic: Topic) -> Outcome:
        brokers = self.brokers()
        if topic.replication_factor > brokers:
            raise TidemillError(
                Reason.INVALID_SPEC,
                f"topic {topic.name}: replication factor {topic.replication_factor} needs as many brokers, and there"
                f" {'is 1' if brokers == 1 else f'are {brokers}'}",
                f"set spec.source.topic.replicationFactor to at most {brokers}",
            )
        wanted = NewTopic(topic.name, topic.partitions, topic.replication_factor, config=dict(topic.config))
        with self._told(f"creating topic {topic.name}"):
            self._each(
                self._admin().create_topics([wanted], request_timeout=self._timeout),
                okay=(KafkaError.TOPIC_ALREADY_EXISTS,),
            )
        return _report(topic, self._await(topic), 1)

    def _repair(self, name: str, drift: Mapping[str, str]) -> None:
        entries = [ConfigEntry(key, value, incremental_operation=AlterConfigOpType.SET) for key, value in drift.items()]
        resource = ConfigResource(ResourceType.TOPIC, name, incremental_configs=entries)
        with self._told(f"setting {', '.join(sorted(drift))} of topic {name}"):
            self._each(self._admin().incremental_alter_configs([resource], request_timeout=self._timeout))
        self._settle(lambda: drift.items() <= self.configs([name])[name].items())

    def _await(self, topic: Topic) -> LiveTopic | None:
        """Wait a moment until a change shows: metadata reach a broker a little later."""
        found: dict[str, LiveTopic] = {}

        def shows() -> bool:
            found.update(self.observe([topic.name]))
            return topic.name in found and found[topic.name].partitions >= topic.partitions

        self._settle(shows)
        return found.get(topic.name)

    def _settle(self, shows: Callable[[], bool]) -> None:
        deadline = time.monotonic() + _SETTLE_SECONDS
        while not shows() and time.monotonic() < deadline:
            time.sleep(0.1)

    def _admin(self) -> AdminClient:
        if not self._brokers:
            raise TidemillError(Reason.UNREACHABLE, "no Kafka is known", "set TIDEMILL_KAFKA_BROKERS")
        if self._client is None:
            self._client = AdminClient(self._config)
        return self._client

    def _wait(self, future: Future[Any]) -> Any:
        return future.result(timeout=self._timeout + 5.0)

    def _each(self, futures: Mapping[Any, Future[Any]], okay: tuple[int, ...] = ()) -> None:
        for future in futures.values():
            try:
                self._wait(future)
            except KafkaException as error:
                if error.args[0].code() not in okay:
                    raise

    @contextmanager
    def _told(self, doing: str) -> Iterator[None]:
        """Turn Kafka's errors into ours, saying what was being done."""
        try:
            yield
        except FutureTimeout:
            raise TidemillError(
                Reason.UNREACHABLE, f"{doing}: Kafka at {self._brokers} did not answer within {self._timeout:g} s"
            ) from None
        except KafkaException as error:
            cause = error.args[0]
            if cause.code() in _GONE:
                raise TidemillError(
                    Reason.UNREACHABLE, f"{doing}: Kafka at {self._brokers} does not answer ({cause.str()})"
                ) from error
            reason = Reason.INVALID_SPEC if cause.code() in _WRONG else Reason.REFUSED
            raise TidemillError(reason, f"{doing}: Kafka refuses ({cause.name()}: {cause.str()})") from error


def _report(topic: Topic, live: LiveTopic | None, changed: int) -> Outcome:
    if live is None or (live.partitions < topic.partitions and topic.managed):
        return outcome.waiting(Component.TOPICS, topic.name, f"topic {topic.name} is being made", changed=changed)
    observed: dict[str, str | int] = {"id": live.id, "partitions": live.partitions}
    observed["replicationFactor"] = live.replication_factor
    return outcome.done(Component.TOPICS, topic.name, changed=changed, observed=observed)
