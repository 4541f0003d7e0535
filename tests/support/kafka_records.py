"""Kafka records in the form of the consumer, for tests that pass batches to the processor without a broker."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from tidemill_contract.events.records import RecordDecoder

ARRIVED_MS = 1_700_000_000_000
NOW_MS = 1_795_800_000_000


class KafkaRecord:
    """The base class of such records; subclasses implement `value`.

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
    """A record with the value `raw`."""

    p: int
    o: int
    raw: bytes

    def value(self) -> bytes:
        return self.raw


def records(*values: Any, p: int = 0) -> list[RawRecord]:
    """Return values as records of one partition, from offset 0. Values that are not bytes become JSON."""
    raws = [value if isinstance(value, bytes) else json.dumps(value).encode() for value in values]
    return [RawRecord(p, offset, raw) for offset, raw in enumerate(raws)]


@dataclass(frozen=True)
class SentRecord(KafkaRecord):
    """A record with the value `sent`, which may be None."""

    sent: bytes | None
    o: int = 0
    p: int = 0

    def value(self) -> bytes | None:  # type: ignore[override]
        return self.sent


def read_alike(of: RecordDecoder, *raws: bytes | None) -> list[Any]:
    """Decode records, and assert that each decodes alike alone and in a batch.

    Return for each record its fields, the reason why it is invalid, or None if the decoder leaves it out.
    """

    def decoded(*chosen: bytes | None) -> list[Any]:
        plain = [raw or b"" for raw in chosen]
        batch = of.decode_all(plain, NOW_MS, records=[SentRecord(raw, at) for at, raw in enumerate(chosen)])
        micros = batch.micros or [0] * len(plain)
        values: list[Any] = []
        for index, event in enumerate(batch.events):
            values.append(batch.invalid.get(index))
            if event is not None:
                (text,) = of.as_json([event], [plain[index]])
                values[-1] = {**json.loads(text), **({"us": micros[index]} if micros[index] else {})}
                assert {name: of.values([event], name)[0] for name in json.loads(text)} == json.loads(text)
        return values

    together = decoded(*raws)
    assert [str(each) for each in together] == [str(decoded(raw)[0]) for raw in raws]
    return together
