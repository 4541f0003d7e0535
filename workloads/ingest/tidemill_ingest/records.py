"""Raw events to Kafka records of one pipeline: judged by the contract's decoder, keyed, and marked where refused.

A refused event goes to the events topic as well, behind a first byte that no JSON has and with the verdict in headers:
the processor, which alone writes dead letters, gives it a true topic, partition and offset.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tidemill_contract.events import quarantine
from tidemill_contract.events.decoder import QUARANTINE_PREFIX, EventDecoder, InvalidEvent, Reason
from tidemill_contract.events.quarantine import Headers
from tidemill_contract.runtime import PipelineConfig

KEPT_BYTES = 64 * 1024
"""How much is sent of an event that is too large: what a dead letter keeps."""


@dataclass(frozen=True)
class Records:
    """The records of a request, one an event, in the events' order.

    Attributes:
        values: what is written; for a refused event its marked form.
        keys: record keys; None where the pipeline has none.
        headers: of refused events, by index.
        invalid: the verdicts on refused events, by index.
    """

    values: list[bytes]
    keys: list[bytes | None] | None
    headers: dict[int, Headers]
    invalid: dict[int, InvalidEvent]

    def key(self, index: int) -> bytes | None:
        """The key of one."""
        return self.keys[index] if self.keys is not None else None

    def single(self, index: int) -> Records:
        """One of them as it is."""
        headers = {0: self.headers[index]} if index in self.headers else {}
        return Records([self.values[index]], [self.key(index)], headers, {})

    def subset(self, indexes: Sequence[int]) -> Records:
        """Some of them, in this order."""
        return Records(
            [self.values[index] for index in indexes],
            [self.keys[index] for index in indexes] if self.keys is not None else None,
            {at: self.headers[index] for at, index in enumerate(indexes) if index in self.headers},
            {at: self.invalid[index] for at, index in enumerate(indexes) if index in self.invalid},
        )

    def shrunk(self, index: int, verdict: InvalidEvent) -> Records:
        """One of them as the record of a refused event that is cut short."""
        value = self.values[index].removeprefix(QUARANTINE_PREFIX)[:KEPT_BYTES]
        return Records([QUARANTINE_PREFIX + value], [None], {0: quarantine.headers(verdict)}, {0: verdict})


class Judge:
    """Judges and keys the events of one pipeline."""

    def __init__(self, config: PipelineConfig) -> None:
        self._decoder = EventDecoder(config.spec)
        self._key = config.spec.source.key
        kinds = {field.name: field.type for field in config.spec.source.fields}
        self._encode: Callable[[Any], bytes] = _ENCODERS.get(kinds.get(self._key or "", ""), _encode_number)

    def judge(self, values: Sequence[bytes], now_ms: int) -> Records:
        """The records of events that came at wall time `now_ms` (epoch milliseconds)."""
        events, invalid = self._decoder.decode_batch(values, now_ms)
        keys = None
        if self._key is not None:
            keys = self._keys(self._key, events)
        records = Records(list(values), keys, {}, invalid)
        for index, verdict in invalid.items():
            value = values[index][:KEPT_BYTES] if verdict.reason is Reason.TOO_LARGE else values[index]
            records.values[index] = QUARANTINE_PREFIX + value
            records.headers[index] = quarantine.headers(verdict)
        return records

    def _keys(self, name: str, events: list[Any]) -> list[bytes | None]:
        encode = self._encode
        found = [getattr(event, name, None) for event in events]
        return [encode(value) if value is not None else None for value in found]


def _encode_number(value: float) -> bytes:
    return repr(value).encode()


def _encode_boolean(value: bool) -> bytes:
    return b"true" if value else b"false"


_ENCODERS: dict[str, Callable[[Any], bytes]] = {"string": str.encode, "boolean": _encode_boolean}
