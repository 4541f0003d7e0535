"""Limits of the queue of records for Kafka, in total and for each topic."""

from __future__ import annotations

from tidemill_ingest.kafka.producers import QUEUE_BYTES, QUEUE_MESSAGES

IN_FLIGHT_MESSAGES = QUEUE_MESSAGES // 2
"""The maximum number of a topic's records in the queue."""
BUSY_SHARE = 0.8
"""New requests are refused when this share of the queue is used."""


class QueueFullError(Exception):
    """Raised if the producer's queue is full. Nothing was sent."""


class TopicFullError(Exception):
    """Raised if too many records of a topic are in the queue. Nothing was sent."""


class Queue:
    """Counts the records that are on their way to Kafka.

    Attributes:
        records: the number of records in the queue.
    """

    def __init__(self, topic_bytes: int) -> None:
        self._topic_bytes = topic_bytes or QUEUE_BYTES
        self.records = self._bytes = 0
        self._topics: dict[str, tuple[int, int]] = {}
        """The number and the size of the records in the queue, by topic."""

    @property
    def busy(self) -> bool:
        """Whether the queue is so full that requests are refused at once."""
        return self.records > BUSY_SHARE * QUEUE_MESSAGES or self._bytes > BUSY_SHARE * QUEUE_BYTES

    def reserve(self, topic: str, count: int, size: int) -> None:
        """Reserve room in the queue for `count` records with a total of `size` bytes.

        Raises:
            QueueFullError: the queue has no room for all records.
            TopicFullError: the topic's share of the queue has no room for all records.
        """
        if self.records + count > QUEUE_MESSAGES or self._bytes + size > QUEUE_BYTES:
            raise QueueFullError("the queue to Kafka is full")
        queued, queued_bytes = self._topics.get(topic, (0, 0))
        # The topic's limit does not apply while the topic has no queued records.
        if queued and (queued + count > IN_FLIGHT_MESSAGES or queued_bytes + size > self._topic_bytes):
            raise TopicFullError(f"{queued} events ({queued_bytes} bytes) of the pipeline are on their way to Kafka")
        self._topics[topic] = queued + count, queued_bytes + size
        self.records += count
        self._bytes += size

    def release(self, topic: str, count: int, size: int) -> None:
        """Release reserved room in the queue."""
        queued, queued_bytes = self._topics[topic]
        if queued > count:
            self._topics[topic] = queued - count, queued_bytes - size
        else:
            del self._topics[topic]
        self.records -= count
        self._bytes -= size
