"""Read topics of the Kafka clusters that users name in `spec.source.kafka`.

Every request uses the current login from the Secret that `spec.source.kafka` names.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from tidemill_contract.kafka_login import LoginError, client_settings, read_keys
from tidemill_contract.resource.kinds.kafka import KafkaSpec
from tidemill_operator.actuators.kafka.missing_topics import find_missing_topics
from tidemill_operator.actuators.kafka.offsets import OffsetReader
from tidemill_operator.actuators.kafka.session import KafkaSession, Remedies
from tidemill_operator.actuators.kafka.topics import live_topic
from tidemill_operator.errors import Reason, TidemillError
from tidemill_operator.plan.live import LiveTopic

ANSWER_SECONDS = 6.0
"""The timeout of requests in seconds, short because one unreachable cluster must not delay other pipelines."""
# The seconds between requests to a cluster that does not answer.
_PAUSE_SECONDS = 10.0
_MAX_CLUSTERS = 256

T = TypeVar("T")

SecretReader = Callable[[str, str], Mapping[str, str]]
"""A function from a Secret's namespace and name to its keys. The function may raise TidemillError or LoginError."""


@dataclass(frozen=True)
class Connection:
    """The address and the client settings of a cluster."""

    servers: str
    settings: tuple[tuple[str, str], ...] = field(default=(), repr=False)


class Cluster:
    """The clients of one Kafka cluster."""

    def __init__(self, connection: Connection, secret: str) -> None:
        self.connection, self.name = connection, f"Kafka at {connection.servers}"
        ports = " and ".join(sorted({server.rpartition(":")[2] for server in connection.servers.split(",")}))
        login = f"the login in the Secret {secret}" if secret else "clients without a login"
        self._remedies = Remedies(
            f"check {login}" if secret else "set spec.source.kafka.secretRef",
            f"check that Kafka runs, and allow the operator to connect to port {ports}: in Kubernetes, add the port"
            " to the chart's value networkPolicy.egressPorts",
            f"allow Describe and Read on the topic to {login}",
        )
        self._id = ""
        self._last_failure: tuple[float, TidemillError] | None = None

    @cached_property
    def session(self) -> KafkaSession:
        """Return the client for topics."""
        return KafkaSession(self.connection.servers, dict(self.connection.settings), ANSWER_SECONDS, self._remedies)

    @cached_property
    def offset_reader(self) -> OffsetReader:
        """Return the client for offsets."""
        servers, settings = self.connection.servers, dict(self.connection.settings)
        return OffsetReader(servers, config=settings, timeout_seconds=ANSWER_SECONDS, name=self.name)

    def names(self, own_id: Callable[[], str]) -> list[str]:
        """Return the names of all topics that the login may describe.

        Raises:
            TidemillError: the cluster does not answer, refuses the request, or is the platform's own Kafka.
        """

        def names() -> list[str]:
            self._refuse_own_kafka(own_id)
            return self.session.names()

        return self._request(names)

    def topic(self, name: str, own_id: Callable[[], str]) -> LiveTopic | None:
        """Return a topic, or None if it does not exist or the login may not describe it.

        Raises:
            TidemillError: the cluster does not answer, refuses the request, or is the platform's own Kafka.
        """
        return self._request(lambda: self._topic(name, own_id))

    def _request(self, send: Callable[[], T]) -> T:
        """Send a request. For 10 seconds after an UNREACHABLE error, raise the same error without a request."""
        failure = self._last_failure
        if failure is not None and time.monotonic() - failure[0] < _PAUSE_SECONDS:
            raise TidemillError(failure[1].reason, failure[1].message, failure[1].remedy)
        try:
            return send()
        except TidemillError as error:
            if error.reason == Reason.UNREACHABLE:
                self._last_failure = (time.monotonic(), error)
            raise

    def _topic(self, name: str, own_id: Callable[[], str]) -> LiveTopic | None:
        self._refuse_own_kafka(own_id)
        description = self.session.describe_existing([name]).get(name)
        return None if description is None else live_topic(description)

    def _refuse_own_kafka(self, own_id: Callable[[], str]) -> None:
        self._id = self._id or self.session.cluster_id()
        if self._id and self._id == own_id():
            raise TidemillError(
                Reason.INVALID_SPEC,
                f"spec.source.kafka.bootstrapServers: {self.connection.servers} is the platform's own Kafka",
                "take out spec.source.kafka",
            )


class Clusters:
    """A thread-safe collection of clients for the clusters of sources."""

    def __init__(self, read_secret: SecretReader, own: KafkaSession | None = None) -> None:
        self._read_secret, self._own, self._id = read_secret, own, ""
        self._clusters: OrderedDict[tuple[str, KafkaSpec], Cluster] = OrderedDict()
        self._lock = threading.Lock()

    def open(self, namespace: str, kafka: KafkaSpec) -> Cluster:
        """Return the clients of a cluster, which use the current login in the Secret.

        Raises:
            TidemillError: the Secret is missing or wrong, or cannot be read.
        """
        connection = self._connection(namespace, kafka)
        key = namespace, kafka
        with self._lock:
            cluster = self._clusters.get(key)
            if cluster is None or cluster.connection != connection:
                secret = f"{namespace}/{kafka.secret}" if kafka.secret else ""
                cluster = self._clusters[key] = Cluster(connection, secret)
            self._clusters.move_to_end(key)
            while len(self._clusters) > _MAX_CLUSTERS:
                self._clusters.popitem(last=False)
        return cluster

    def names(self, namespace: str, kafka: KafkaSpec) -> list[str]:
        """Return the names of all topics that the login may describe.

        Raises:
            TidemillError: as `topic`.
        """
        return self.open(namespace, kafka).names(self._own_id)

    def topic(self, namespace: str, kafka: KafkaSpec, name: str) -> LiveTopic | None:
        """Return a topic, or None if it does not exist or the login may not describe it.

        Raises:
            TidemillError: the Secret is missing or wrong, the cluster refuses the request, the cluster does not answer,
                or the cluster is the platform's own Kafka.
        """
        return self.open(namespace, kafka).topic(name, self._own_id)

    def find_missing(self, namespace: str, kafka: KafkaSpec, names: Sequence[str]) -> frozenset[str]:
        """Return the topics that every broker of the cluster reports as missing.

        Raises:
            TidemillError: the Secret is missing or wrong, or cannot be read.
        """
        session = self.open(namespace, kafka).session
        return find_missing_topics(session.config, names, session.timeout)

    def _own_id(self) -> str:
        if not self._id and self._own is not None:
            self._id = self._own.cluster_id()
        return self._id

    def _connection(self, namespace: str, kafka: KafkaSpec) -> Connection:
        keys: Mapping[str, str] = {}
        try:
            keys = self._read_secret(namespace, kafka.secret) if kafka.secret else {}
            settings = client_settings(keys)
        except LoginError as error:
            message = f"spec.source.kafka.secretRef: Secret {namespace}/{kafka.secret}: {error}"
            raise TidemillError(Reason.INVALID_SPEC, message, "the keys are listed in docs/kafka-clusters.md") from None
        return Connection(",".join(kafka.servers), tuple(sorted(settings.items())))


def secret_file_reader(root: Path) -> SecretReader:
    """Return a function that reads a Secret from the folder `<root>/<namespace>/<name>`."""

    def read(namespace: str, name: str) -> Mapping[str, str]:
        folder = root / namespace / name
        if not folder.is_dir():
            raise LoginError(f"there is no folder {folder}; create the folder with a file for each key")
        return read_keys(folder)

    return read
