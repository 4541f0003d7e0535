"""The admin client of one Kafka cluster, with Kafka's errors translated into TidemillError."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from confluent_kafka import KafkaError, KafkaException, TopicCollection
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, NewTopic, ResourceType

from tidemill_operator.errors import Reason, TidemillError

_WAIT_SECONDS = 15.0
_SLACK_SECONDS = 5.0
UNREACHABLE_CODES = frozenset({
    KafkaError._TIMED_OUT,
    KafkaError._TRANSPORT,
    KafkaError._ALL_BROKERS_DOWN,
    KafkaError._RESOLVE,
    KafkaError._DESTROY,
    KafkaError.REQUEST_TIMED_OUT,
    KafkaError.NOT_CONTROLLER,
})  # fmt: skip
LOGIN_REFUSED_CODES = frozenset({KafkaError._AUTHENTICATION, KafkaError._SSL})
_CHECK_SETTINGS = "check the client settings for TLS and SASL in the file that TIDEMILL_KAFKA_CONFIG names"
_INVALID_CODES = frozenset(
    {KafkaError.INVALID_CONFIG, KafkaError.INVALID_PARTITIONS, KafkaError.INVALID_REPLICATION_FACTOR}
)


@dataclass(frozen=True)
class Remedies:
    """Advice for error messages.

    Attributes:
        refused: advice if Kafka refuses the login or certificate.
        unreachable: advice if no broker answers.
        denied: advice if the login may not use a topic.
    """

    refused: str = _CHECK_SETTINGS
    unreachable: str = ""
    denied: str = ""


class KafkaSession:
    """A thread-safe client for requests to one Kafka cluster."""

    def __init__(
        self, brokers: str, config: Mapping[str, Any], timeout_seconds: float, remedies: Remedies | None = None
    ) -> None:
        self.brokers, self.timeout, self._remedies = brokers, timeout_seconds, remedies or Remedies()
        self.config = {"bootstrap.servers": brokers, "log_level": 0, "error_cb": self._record_refusal, **config}
        self.client: AdminClient | None = None
        self._last_refusal: tuple[str, float] | None = None

    def admin(self) -> AdminClient:
        """Return the client.

        Raises:
            TidemillError: no broker is known.
        """
        if not self.brokers:
            raise TidemillError(Reason.UNREACHABLE, "no Kafka address is configured", "set TIDEMILL_KAFKA_BROKERS")
        if self.client is None:
            self.client = AdminClient(self.config)
        return self.client

    def wait(self, future: Future[Any]) -> Any:
        """Return a request's answer."""
        return future.result(timeout=self.timeout + _SLACK_SECONDS)

    def wait_all(self, futures: Mapping[Any, Future[Any]], ignored_codes: tuple[int, ...] = ()) -> None:
        """Wait for the requests. Raise the first error whose code is not in `ignored_codes`."""
        for future in futures.values():
            try:
                self.wait(future)
            except KafkaException as error:
                if error.args[0].code() not in ignored_codes:
                    raise

    def cluster_id(self) -> str:
        """Return the cluster's id.

        Raises:
            TidemillError: Kafka does not answer, or refuses.
        """
        with self.translate_errors("describing the cluster"):
            return str(self.wait(self.admin().describe_cluster(request_timeout=self.timeout)).cluster_id or "")

    def set_configs(self, kind: ResourceType, name: str, configs: Mapping[str, str | None]) -> bool:
        """Set configs of a topic or a broker. None removes a config.

        Returns whether Kafka reported the new values within 15 seconds.

        Raises:
            TidemillError: Kafka does not answer, or refuses.
        """
        entries = [
            ConfigEntry(key, value, incremental_operation=AlterConfigOpType.SET)
            if value is not None
            else ConfigEntry(key, "", incremental_operation=AlterConfigOpType.DELETE)
            for key, value in configs.items()
        ]
        resource = ConfigResource(kind, name, incremental_configs=entries)
        doing = "setting" if any(value is not None for value in configs.values()) else "taking away"
        with self.translate_errors(f"{doing} {', '.join(sorted(configs))} of {kind.name.lower()} {name}"):
            self.wait_all(self.admin().incremental_alter_configs([resource], request_timeout=self.timeout))

        def is_applied() -> bool:
            live = self.configs(kind, [name])[name]
            # Do not check the values of removed configs, because their defaults are unknown.
            return all(live.get(key) == value for key, value in configs.items() if value is not None)

        return self.wait_until(is_applied)

    def describe_topics(self, topics: Sequence[str]) -> dict[str, Any]:
        """Return the client's descriptions of existing topics.

        Raises:
            TidemillError: Kafka does not answer, or refuses.
        """
        if not topics:
            return {}
        descriptions = {}
        with self.translate_errors("describing topics"):
            futures = self.admin().describe_topics(TopicCollection(list(topics)), request_timeout=self.timeout)
        for name, future in futures.items():
            with self.translate_errors(f"describing topic {name}"):
                try:
                    descriptions[name] = self.wait(future)
                except KafkaException as error:
                    if error.args[0].code() != KafkaError.UNKNOWN_TOPIC_OR_PART:
                        raise
        return descriptions

    def names(self) -> list[str]:
        """Return the names of all topics that the login may describe.

        Raises:
            TidemillError: Kafka does not answer, or refuses.
        """
        with self.translate_errors("listing topics"):
            return sorted(self.admin().list_topics(timeout=self.timeout).topics)

    def describe_existing(self, names: Sequence[str]) -> dict[str, Any]:
        """Return the descriptions of existing topics by name.

        Raises:
            TidemillError: a topic exists, but a broker does not know it yet.
        """
        descriptions = self.describe_topics(names)
        undescribed = self.known_to_controller([name for name in names if name not in descriptions])

        def all_found() -> bool:
            descriptions.update(self.describe_topics(sorted(undescribed)))
            return undescribed <= descriptions.keys()

        if not self.wait_until(all_found):
            unknown = ", ".join(sorted(undescribed - descriptions.keys()))
            raise TidemillError(
                Reason.UNREACHABLE,
                f"topic {unknown} exists, but a broker does not know the topic yet",
                "check that every broker can reach the Kafka controller",
            )
        return descriptions

    def configs(self, kind: ResourceType, names: list[str]) -> Mapping[str, Mapping[str, str]]:
        """Return all config values of existing topics or brokers.

        Raises:
            TidemillError: Kafka does not answer, or refuses.
        """
        if not names:
            return {}
        configs = {}
        with self.translate_errors("describing configs"):
            futures = self.admin().describe_configs(
                [ConfigResource(kind, name) for name in names], request_timeout=self.timeout
            )
        for resource, future in futures.items():
            with self.translate_errors(f"describing the config of {kind.name.lower()} {resource.name}"):
                configs[resource.name] = {key: entry.value or "" for key, entry in self.wait(future).items()}
        return configs

    def has_config(self, topic: str, config: Mapping[str, str]) -> bool:
        """Return whether a topic has the given configs.

        Raises:
            TidemillError: Kafka does not answer.
        """
        try:
            return config.items() <= self.configs(ResourceType.TOPIC, [topic])[topic].items()
        except TidemillError as error:
            if error.reason != Reason.REFUSED:
                raise
            return False

    def known_to_controller(self, topics: Sequence[str]) -> frozenset[str]:
        """Return the topics that the controller knows. A broker may not know a new topic yet.

        Raises:
            TidemillError: Kafka does not answer.
        """
        if not topics:
            return frozenset()
        existing = set()
        # With validate_only, the controller creates nothing, and refuses a topic that exists.
        wanted = [NewTopic(topic, 1, 1) for topic in topics]
        futures = self.admin().create_topics(wanted, request_timeout=self.timeout, validate_only=True)
        for topic, future in futures.items():
            with self.translate_errors(f"asking the controller for topic {topic}"):
                try:
                    self.wait(future)
                except KafkaException as error:
                    if error.args[0].code() in UNREACHABLE_CODES:
                        raise
                    if error.args[0].code() == KafkaError.TOPIC_ALREADY_EXISTS:
                        existing.add(topic)
        return frozenset(existing)

    def wait_until(self, condition: Callable[[], bool]) -> bool:
        """Wait up to 15 seconds until `condition` returns true, and return the last result of `condition`."""
        deadline = time.monotonic() + _WAIT_SECONDS
        while not (result := condition()) and time.monotonic() < deadline:
            time.sleep(0.1)
        return result

    def _record_refusal(self, error: KafkaError) -> None:
        if error.code() in LOGIN_REFUSED_CODES:
            self._last_refusal = error.str(), time.monotonic()

    def _poll_client(self) -> None:
        # poll calls error_cb, which records a refused login.
        if self.client is not None:
            self.client.poll(0)

    def _unreachable_error(self, doing: str, how: str, client: AdminClient) -> TidemillError:
        """Return the error for a request without an answer, and discard the client."""
        self._poll_client()
        if self.client is client:
            self.client = None
        refusal = self._last_refusal
        if refusal is None or time.monotonic() - refusal[1] > 2 * (self.timeout + _SLACK_SECONDS):
            return TidemillError(
                Reason.UNREACHABLE, f"{doing}: Kafka at {self.brokers} {how}", self._remedies.unreachable
            )
        message = f"{doing}: Kafka at {self.brokers} refuses the client ({refusal[0]})"
        return TidemillError(Reason.UNREACHABLE, message, self._remedies.refused)

    @contextmanager
    def translate_errors(self, doing: str) -> Iterator[None]:
        """Raise Kafka's errors as TidemillError. The message begins with the value of `doing`."""
        # Keep a reference to the client until the answer arrives, because another thread may replace `self.client`.
        client = self.admin()
        self._poll_client()
        try:
            yield
            self._last_refusal = None
        except FutureTimeout:
            raise self._unreachable_error(doing, f"did not answer within {self.timeout:g} s", client) from None
        except KafkaException as error:
            cause = error.args[0]
            if cause.code() in UNREACHABLE_CODES:
                raise self._unreachable_error(doing, f"does not answer ({cause.str()})", client) from error
            reason = Reason.INVALID_SPEC if cause.code() in _INVALID_CODES else Reason.REFUSED
            remedy = self._remedies.denied if cause.code() == KafkaError.TOPIC_AUTHORIZATION_FAILED else ""
            raise TidemillError(reason, f"{doing}: Kafka refuses ({cause.name()}: {cause.str()})", remedy) from error
