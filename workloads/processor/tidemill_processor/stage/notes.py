"""Tells the operator why the stage is waiting.

The stage has no login to Postgres, and a pod cannot write conditions of the pipeline. So it puts the reason into the
metadata of an offset, which it commits in a separate consumer group. The operator reads it together with the stage's
positions.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from confluent_kafka import Consumer, TopicPartition

from tidemill_contract.staged import RUNS

_MOST_CHARACTERS = 1_000
"""Kafka accepts 4096 bytes by default."""
_AGAIN_SECONDS = 3_600.0
"""A note is repeated, because Kafka deletes the offsets of a group without members after a week."""
_WAITS_AGAIN_SECONDS = 10.0
"""The reason of a replica that waits is repeated, because another replica that runs may have replaced the note."""


class Notes:
    """Writes why the stage is waiting. Use it in one thread only."""

    def __init__(self, connection: Mapping[str, Any], *, group: str, topic: str) -> None:
        self._consumer = Consumer({**connection, "group.id": group, "enable.auto.commit": False, "log_level": 0})
        self._topic = topic
        self._told: str | None = None
        self._told_at = 0.0

    def tell(self, text: str) -> None:
        """Write a reason, or an empty text if the stage runs. The same text is only written again after a while.

        Raises:
            KafkaException: Kafka does not answer.
        """
        text = text[:_MOST_CHARACTERS] or RUNS
        again = _AGAIN_SECONDS if text == RUNS else _WAITS_AGAIN_SECONDS
        if text == self._told and time.monotonic() - self._told_at < again:
            return
        # TopicPartition takes the metadata as its fourth argument.
        self._consumer.commit(offsets=[TopicPartition(self._topic, 0, 0, text)], asynchronous=False)
        self._told, self._told_at = text, time.monotonic()
