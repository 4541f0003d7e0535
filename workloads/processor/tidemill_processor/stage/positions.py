"""Determines where the stage starts reading.

The stage recovers lost positions of the consumer group from the stage topic's last records.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from tidemill_contract.stage_records import Origin, read_origin
from tidemill_contract.times import epoch_ms, read_start
from tidemill_processor.stage import metrics

log = logging.getLogger(__name__)

REQUEST_SECONDS = 10.0
"""The timeout of a request to Kafka, in seconds."""
_READ_SECONDS = 30.0
_STEP = 200


class PositionsLost(Exception):
    """Raised if neither the consumer group nor the stage topic shows the stage's position in the source topic."""


class StagePositions:
    """Reads and writes positions outside of the consumer group's transactions."""

    def __init__(self, connection: Mapping[str, Any], *, group: str, source: str, stage: str) -> None:
        self._source, self._stage = source, stage
        self._consumer = Consumer(
            {
                **connection,
                "group.id": group,
                "enable.auto.commit": False,
                "enable.partition.eof": True,
                "fetch.wait.max.ms": 20,
                "auto.offset.reset": "error",
                "log_level": 3,
            }
        )

    def close(self) -> None:
        """Close the connection."""
        self._consumer.close()

    def prepare(self, partitions: int, topic_id: str, start_from: str) -> None:
        """Commit a start position for each partition that needs one.

        Raises:
            PositionsLost: the position in a partition cannot be determined.
        """
        topic_partitions = [TopicPartition(self._source, number) for number in range(partitions)]
        positions = self._consumer.committed(topic_partitions, timeout=REQUEST_SECONDS)
        committed = {at.partition: at.offset for at in positions}
        missing = [number for number, offset in committed.items() if offset < 0]
        self._report_losses({number: offset for number, offset in committed.items() if offset >= 0})
        offsets = {
            number: self._recover_offset(number, topic_id, required=offset < 0) for number, offset in committed.items()
        }
        starts = {number: offset for number, offset in offsets.items() if offset is not None}
        starts = {number: offset for number, offset in starts.items() if offset > committed[number]}
        # `startFrom` applies only to a new stage. Partitions that are added later are read from the beginning.
        if len(missing) == partitions and not starts and start_from != "earliest":
            starts = self._start_offsets(missing, start_from)
        if not starts:
            return
        log.info("the positions of the consumer group are set: %s", starts)
        try:
            self._consumer.commit(
                offsets=[TopicPartition(self._source, number, offset) for number, offset in starts.items()],
                asynchronous=False,
            )
        except KafkaException as error:
            # Kafka refuses the commit if the group has active members. Active members have already committed positions.
            if error.args[0].code() not in (KafkaError.UNKNOWN_MEMBER_ID, KafkaError.ILLEGAL_GENERATION):
                raise

    def _report_losses(self, committed: Mapping[int, int]) -> None:
        for number, offset in committed.items():
            first = self._range(self._source, number)[0]
            if offset < first:
                log.error("partition %d: offsets %d to %d were deleted before they were read", number, offset, first)
                metrics.STAGE_LOST.inc(first - offset)

    def _start_offsets(self, partitions: Sequence[int], start_from: str) -> dict[int, int]:
        if start_from == "latest":
            return {number: self._range(self._source, number)[1] for number in partitions}
        at = epoch_ms(read_start(start_from))
        topic_partitions = [TopicPartition(self._source, number, at) for number in partitions]
        starts = self._consumer.offsets_for_times(topic_partitions, timeout=REQUEST_SECONDS)
        return {
            start.partition: start.offset if start.offset >= 0 else self._range(self._source, start.partition)[1]
            for start in starts
        }

    def _recover_offset(self, partition: int, topic_id: str, *, required: bool) -> int | None:
        low, high = self._range(self._stage, partition)
        if high == 0:
            return None
        step = _STEP
        while low < high:
            origin = self._last_origin(partition, max(low, high - step), high)
            if origin is not None:
                # If the source topic was deleted and created again, read the topic from the beginning.
                return origin.offset + 1 if origin.topic_id == topic_id else 0
            if high - step <= low:
                break
            step *= 10
        # No origin was found. If `low` is 0, Kafka has not deleted records. In this case, all transactions that
        # wrote to the partition were aborted.
        if not required or low == 0:
            return None
        raise PositionsLost(
            f"the Python stage has lost its position in partition {partition} of topic {self._source}: Kafka has"
            " deleted the committed offset and the records of the stage topic; with Kafka's tools, set the offset of"
            " the stage's consumer group to the next record to read"
        )

    def _last_origin(self, partition: int, first: int, end: int) -> Origin | None:
        origin: Origin | None = None
        self._consumer.assign([TopicPartition(self._stage, partition, first)])
        deadline = time.monotonic() + _READ_SECONDS
        try:
            while time.monotonic() < deadline:
                # The call waits for 500 messages or until the timeout.
                for message in self._consumer.consume(500, 0.05):
                    error = message.error()
                    if error is not None and error.code() == KafkaError._PARTITION_EOF:
                        return origin
                    if error is not None:
                        raise KafkaException(error)
                    origin = read_origin(message.headers()) or origin
                    if (message.offset() or 0) >= end - 1:
                        return origin
            raise KafkaException(KafkaError(KafkaError._TIMED_OUT, "reading the stage topic takes too long"))
        finally:
            self._consumer.unassign()

    def _range(self, topic: str, partition: int) -> tuple[int, int]:
        low, high = self._consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=REQUEST_SECONDS)
        return int(low), int(high)
