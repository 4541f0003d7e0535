"""Shows the operator why the stage is waiting.

The reason is stored as the metadata of an offset in a separate consumer group.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from confluent_kafka import Consumer, TopicPartition

from tidemill_contract.stage_records import STAGE_RUNNING

_MAX_CHARS = 1_000
_AGAIN_SECONDS = 3_600.0
"""A running stage writes the offset again after this many seconds. Otherwise, Kafka would delete the offset, because
the group has no members."""
_WAITS_AGAIN_SECONDS = 10.0
"""After this many seconds, a waiting stage writes the reason again. Other replicas can overwrite the reason."""


class WaitReasonWriter:
    """Writes why the stage is waiting."""

    def __init__(self, connection: Mapping[str, Any], *, group: str, topic: str) -> None:
        self._consumer = Consumer({**connection, "group.id": group, "enable.auto.commit": False, "log_level": 0})
        self._topic = topic
        self._written: str | None = None
        self._written_at = 0.0

    def write(self, text: str) -> None:
        """Write the reason why the stage waits, or an empty text if the stage runs.

        Raises:
            KafkaException: Kafka does not answer.
        """
        text = text[:_MAX_CHARS] or STAGE_RUNNING
        again = _AGAIN_SECONDS if text == STAGE_RUNNING else _WAITS_AGAIN_SECONDS
        if text == self._written and time.monotonic() - self._written_at < again:
            return
        # The fourth argument of TopicPartition is the metadata.
        self._consumer.commit(offsets=[TopicPartition(self._topic, 0, 0, text)], asynchronous=False)
        self._written, self._written_at = text, time.monotonic()
