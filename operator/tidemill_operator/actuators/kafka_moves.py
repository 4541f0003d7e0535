"""Moving replicas between brokers: the one thing that confluent-kafka cannot ask Kafka for, and kafka-python can.

A client lives for one piece of work; while nothing moves the library is not even loaded (20 MiB, nearly a second).
"""

from __future__ import annotations

import logging
import ssl
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tidemill_operator.errors import Reason, TidemillError

_SAME = {
    "client.id": "client_id",
    "security.protocol": "security_protocol",
    "sasl.mechanism": "sasl_mechanism",
    "sasl.mechanisms": "sasl_mechanism",
    "sasl.username": "sasl_plain_username",
    "sasl.password": "sasl_plain_password",
}


@dataclass(frozen=True)
class Moving:
    """A partition whose replicas move: all its replicas, those that come, those that go."""

    replicas: tuple[int, ...]
    coming: frozenset[int]
    going: frozenset[int]


class KafkaMoves:
    """Replicas of one Kafka cluster on their way.

    Args:
        client: a `kafka.admin.KafkaAdminClient`.
        brokers: its bootstrap brokers, for messages.
    """

    def __init__(self, client: Any, brokers: str) -> None:
        self._client, self._brokers = client, brokers

    def of(self, topic: str, partitions: Sequence[int]) -> Mapping[int, Moving]:
        """What moves of a topic, by partition.

        Raises:
            TidemillError: Kafka does not answer, or refuses.
        """
        with self._told("asking what moves"):
            found = self._client.list_partition_reassignments({topic: list(partitions)})
        return {
            at.partition: Moving(
                tuple(told["replicas"]), frozenset(told["adding_replicas"]), frozenset(told["removing_replicas"])
            )
            for at, told in found.items()
        }

    def any(self) -> bool:
        """Whether anything moves in the whole cluster, whoever asked for it.

        Raises:
            TidemillError: Kafka does not answer, or refuses.
        """
        with self._told("asking what moves"):
            return bool(self._client.list_partition_reassignments())

    def move(self, topic: str, wanted: Mapping[int, Sequence[int] | None]) -> None:
        """Send partitions' replicas to brokers; None calls them back.

        Raises:
            TidemillError: Kafka does not answer, or refuses one of them.
        """
        import kafka.errors

        doing = f"moving replicas of topic {topic}"
        with self._told(doing):
            told = self._client.alter_partition_reassignments(
                {
                    kafka.TopicPartition(topic, number): replicas and list(replicas)
                    for number, replicas in wanted.items()
                }
            )
        for at, error in sorted(told.items()):
            # What was to be called back has arrived meanwhile.
            if error is None or (error is kafka.errors.NoReassignmentInProgressError and wanted[at.partition] is None):
                continue
            raise TidemillError(
                Reason.REFUSED,
                f"{doing}: Kafka refuses partition {at.partition} ({error.__name__}: {error.description})",
            )

    @contextmanager
    def _told(self, doing: str) -> Iterator[None]:
        with _told(doing, self._brokers):
            yield


@contextmanager
def moves(config: Mapping[str, Any], timeout_seconds: float) -> Iterator[KafkaMoves]:
    """A client for as long as it is needed.

    Args:
        config: client settings in librdkafka's names.
        timeout_seconds: of each request.

    Raises:
        TidemillError: Kafka does not answer.
    """
    import kafka

    # It tells of every connection that fails; what matters is raised.
    logging.getLogger("kafka").setLevel(logging.CRITICAL)
    brokers = str(config["bootstrap.servers"])
    timeout = int(timeout_seconds * 1000)
    with _told("connecting to move replicas", brokers):
        client = kafka.KafkaAdminClient(
            bootstrap_servers=brokers.split(","),
            request_timeout_ms=timeout,
            bootstrap_timeout_ms=timeout,
            **_translated(config),
        )
    try:
        yield KafkaMoves(client, brokers)
    finally:
        client.close()


def _translated(config: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of who we are in librdkafka's names, told in kafka-python's names."""
    told: dict[str, Any] = {_SAME[key]: value for key, value in config.items() if key in _SAME}
    for name in ("security_protocol", "sasl_mechanism"):
        if name in told:
            told[name] = str(told[name]).upper()
    if told.get("security_protocol", "").endswith("SSL"):
        told["ssl_context"] = _tls(config)
    return told


def _tls(config: Mapping[str, Any]) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=config.get("ssl.ca.location"), cadata=config.get("ssl.ca.pem"))
    if config.get("ssl.endpoint.identification.algorithm") == "none":
        context.check_hostname = False
    if str(config.get("enable.ssl.certificate.verification", "true")).lower() == "false":
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    password = config.get("ssl.key.password")
    if location := config.get("ssl.certificate.location"):
        context.load_cert_chain(location, config.get("ssl.key.location"), password)
    elif pem := config.get("ssl.certificate.pem"):
        # Python reads certificates from files only.
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "client.pem"
            file.touch(mode=0o600)
            file.write_text(f"{pem}\n{config.get('ssl.key.pem', '')}\n")
            context.load_cert_chain(file, password=password)
    return context


@contextmanager
def _told(doing: str, brokers: str) -> Iterator[None]:
    from kafka import errors

    try:
        yield
    except errors.ClusterAuthorizationFailedError as error:
        remedy = "grant Alter on the cluster to the operator's Kafka user"
        raise TidemillError(Reason.REFUSED, f"{doing}: Kafka refuses ({error})", remedy) from error
    except errors.KafkaError as error:
        if isinstance(error, errors.BrokerResponseError) and not error.retriable:
            raise TidemillError(Reason.REFUSED, f"{doing}: Kafka refuses ({error})") from error
        raise TidemillError(Reason.UNREACHABLE, f"{doing}: Kafka at {brokers} does not answer ({error})") from error
