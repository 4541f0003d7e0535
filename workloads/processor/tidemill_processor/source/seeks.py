"""Checks that the consumer starts at the requested offset after a seek."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

from confluent_kafka import KafkaError

log = logging.getLogger(__name__)

GAP_SIGHTINGS = 2
"""A seek may end at a higher offset than the requested offset. The higher offset is accepted after this many repeated
seeks with the same result."""


class Seeks:
    """Remembers the requested offset of each partition until the first record after the seek arrives."""

    def __init__(self) -> None:
        self.requested: dict[int, int] = {}
        self._gaps: dict[int, list[tuple[int, int]]] = {}

    def clear(self) -> None:
        """Forget all requested offsets."""
        self.requested.clear()
        self._gaps.clear()

    def find_failed(self, messages: Iterable[Any]) -> list[int]:
        """Return the partitions whose first record after a seek has a wrong offset."""
        again: list[int] = []
        for message in messages:
            partition, error = message.partition(), message.error()
            sought = self.requested.get(partition)
            if sought is None or (error is not None and error.code() != KafkaError._PARTITION_EOF):
                continue
            del self.requested[partition]
            gaps, gap = self._gaps.setdefault(partition, []), (sought, message.offset())
            if gap[0] != gap[1] and (gap[1] < sought or gaps.count(gap) < GAP_SIGHTINGS):
                log.info("partition %d: sought offset %d, but got offset %d; seeking again", partition, *gap)
                gaps.append(gap)
                again.append(partition)
        return again
