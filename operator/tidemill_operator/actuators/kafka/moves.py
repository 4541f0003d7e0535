"""Move replicas between brokers with kafka-python, because confluent-kafka lacks these requests."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tidemill_operator.actuators.kafka.python_client import connected, told
from tidemill_operator.errors import Reason, TidemillError


@dataclass(frozen=True)
class Moving:
    """A partition that is being reassigned."""

    replicas: tuple[int, ...]
    coming: frozenset[int]
    going: frozenset[int]


class KafkaMoves:
    """A client for the partition reassignments of one Kafka cluster."""

    def __init__(self, client: Any, brokers: str) -> None:
        self._client, self._brokers = client, brokers

    def of(self, topic: str, partitions: Sequence[int]) -> Mapping[int, Moving]:
        """Return the partitions of a topic that are being reassigned.

        Raises:
            TidemillError: Kafka does not answer, or refuses.
        """
        with self._told("listing the replicas that are being moved"):
            reassignments = self._client.list_partition_reassignments({topic: list(partitions)})
        return {
            at.partition: Moving(
                tuple(reassignment["replicas"]),
                frozenset(reassignment["adding_replicas"]),
                frozenset(reassignment["removing_replicas"]),
            )
            for at, reassignment in reassignments.items()
        }

    def any(self) -> bool:
        """Return whether any partition of the cluster is being reassigned.

        Raises:
            TidemillError: Kafka does not answer, or refuses.
        """
        with self._told("listing the replicas that are being moved"):
            return bool(self._client.list_partition_reassignments())

    def move(self, topic: str, wanted: Mapping[int, Sequence[int] | None]) -> None:
        """Reassign partitions to brokers.

        Args:
            topic: name of the topic.
            wanted: brokers of each partition, or None to cancel the reassignment of the partition.

        Raises:
            TidemillError: Kafka does not answer, or refuses one of the reassignments.
        """
        import kafka.errors

        doing = f"moving replicas of topic {topic}"
        with self._told(doing):
            errors = self._client.alter_partition_reassignments(
                {
                    kafka.TopicPartition(topic, number): replicas and list(replicas)
                    for number, replicas in wanted.items()
                }
            )
        for at, error in sorted(errors.items()):
            # If a reassignment completed before the cancellation, ignore Kafka's error.
            if error is None or (error is kafka.errors.NoReassignmentInProgressError and wanted[at.partition] is None):
                continue
            raise TidemillError(
                Reason.REFUSED,
                f"{doing}: Kafka refuses partition {at.partition} ({error.__name__}: {error.description})",
            )

    @contextmanager
    def _told(self, doing: str) -> Iterator[None]:
        with told(doing, self._brokers):
            yield


@contextmanager
def moves(config: Mapping[str, Any], timeout_seconds: float) -> Iterator[KafkaMoves]:
    """Yield a client for reassignments.

    Raises:
        TidemillError: Kafka does not answer.
    """
    with connected(config, timeout_seconds, "connecting to move replicas") as client:
        yield KafkaMoves(client, str(config["bootstrap.servers"]))
