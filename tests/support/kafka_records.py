"""A Kafka record as the processor sees one, for tests that hand it batches without a broker."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

ARRIVED_MS = 1_700_000_000_000


class KafkaRecord:
    """What all such records have in common; a test's own ones say what their value is.

    Attributes:
        p: the partition.
        o: the offset.
    """

    p: int
    o: int

    def key(self) -> bytes | None:
        return None

    def value(self) -> bytes:
        raise NotImplementedError

    def partition(self) -> int:
        return self.p

    def offset(self) -> int:
        return self.o

    def timestamp(self) -> tuple[int, int]:
        return 1, ARRIVED_MS

    def headers(self) -> None:
        return None


@dataclass(frozen=True)
class RawRecord(KafkaRecord):
    """A record whose value is given."""

    p: int
    o: int
    raw: bytes

    def value(self) -> bytes:
        return self.raw


def records(*values: Any, p: int = 0) -> list[RawRecord]:
    """The values as records of one partition, from offset 0 on: bytes as they are, all else as JSON."""
    raws = [value if isinstance(value, bytes) else json.dumps(value).encode() for value in values]
    return [RawRecord(p, offset, raw) for offset, raw in enumerate(raws)]
