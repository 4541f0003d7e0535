"""Move replicas between brokers with kafka-python, because confluent-kafka lacks these requests."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tidemill_operator.actuators.kafka.python_client import open_admin_client, translate_errors
from tidemill_operator.errors import Reason, TidemillError


@dataclass(frozen=True)
class Reassignment:
    """A partition that is being reassigned."""

    replicas: tuple[int, ...]
    adding: frozenset[int]
    removing: frozenset[int]


class Reassignments:
    """A client for the partition reassignments of one Kafka cluster."""

    def __init__(self, client: Any, brokers: str) -> None:
        self._client, self._brokers = client, brokers

    def in_progress(self, topic: str, partitions: Sequence[int]) -> Mapping[int, Reassignment]:
        """Return the partitions of a topic that are being reassigned.

        Raises:
            TidemillError: Kafka does not answer, or refuses.
        """
        with self._translate_errors("listing the replicas that are being moved"):
            reassignments = self._client.list_partition_reassignments({topic: list(partitions)})
        return {
            partition.partition: Reassignment(
                tuple(reassignment["replicas"]),
                frozenset(reassignment["adding_replicas"]),
                frozenset(reassignment["removing_replicas"]),
            )
            for partition, reassignment in reassignments.items()
        }

    def any_in_progress(self) -> bool:
        """Return whether any partition of the cluster is being reassigned.

        Raises:
            TidemillError: Kafka does not answer, or refuses.
        """
        with self._translate_errors("listing the replicas that are being moved"):
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
        with self._translate_errors(doing):
            errors = self._client.alter_partition_reassignments(
                {
                    kafka.TopicPartition(topic, number): replicas and list(replicas)
                    for number, replicas in wanted.items()
                }
            )
        for partition, error in sorted(errors.items()):
            # If a reassignment completed before the cancellation, ignore Kafka's error.
            if error is None or (
                error is kafka.errors.NoReassignmentInProgressError and wanted[partition.partition] is None
            ):
                continue
            raise TidemillError(
                Reason.REFUSED,
                f"{doing}: Kafka refuses partition {partition.partition} ({error.__name__}: {error.description})",
            )

    @contextmanager
    def _translate_errors(self, doing: str) -> Iterator[None]:
        with translate_errors(doing, self._brokers):
            yield


@contextmanager
def open_reassignments(config: Mapping[str, Any], timeout_seconds: float) -> Iterator[Reassignments]:
    """Yield a client for reassignments.

    Raises:
        TidemillError: Kafka does not answer.
    """
    with open_admin_client(config, timeout_seconds, "connecting to move replicas") as client:
        yield Reassignments(client, str(config["bootstrap.servers"]))
