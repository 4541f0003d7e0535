"""A Kafka record as the processor sees one, for tests that hand it batches without a broker."""

from __future__ import annotations

from dataclasses import dataclass

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
