"""A Kafka record as the processor sees one, for tests that hand it batches without a broker."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from tidemill_contract.events.records import RecordDecoder

ARRIVED_MS = 1_700_000_000_000
NOW_MS = 1_795_800_000_000


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


@dataclass(frozen=True)
class SentRecord(KafkaRecord):
    """A record whose value is given, or that has none."""

    sent: bytes | None
    o: int = 0
    p: int = 0

    def value(self) -> bytes | None:  # type: ignore[override]
        return self.sent


def read_alike(of: RecordDecoder, *raws: bytes | None) -> list[Any]:
    """Of each record its fields, the verdict on it, or None if it is left out: the same alone and among others."""

    def decoded(*chosen: bytes | None) -> list[Any]:
        plain = [raw or b"" for raw in chosen]
        found = of.decode_all(plain, NOW_MS, records=[SentRecord(raw, at) for at, raw in enumerate(chosen)])
        micros = found.micros or [0] * len(plain)
        values: list[Any] = []
        for index, event in enumerate(found.events):
            values.append(found.invalid.get(index))
            if event is not None:
                (text,) = of.as_json([event], [plain[index]])
                values[-1] = {**json.loads(text), **({"us": micros[index]} if micros[index] else {})}
                assert {name: of.values([event], name)[0] for name in json.loads(text)} == json.loads(text)
        return values

    together = decoded(*raws)
    assert [str(each) for each in together] == [str(decoded(raw)[0]) for raw in raws]
    return together
