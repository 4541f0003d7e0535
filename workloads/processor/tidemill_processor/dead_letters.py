"""Makes dead letters from records and array elements."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from tidemill_contract.events.decoder import InvalidEvent

STORED_VALUE_BYTES = 64 * 1024
"""The maximum size in bytes of the value in a dead letter."""


class Message(Protocol):
    """A Kafka record, with the methods of confluent-kafka's `Message`."""

    def key(self) -> bytes | None: ...  # noqa: D102
    def value(self) -> bytes | None: ...  # noqa: D102
    def partition(self) -> int: ...  # noqa: D102
    def offset(self) -> int: ...  # noqa: D102
    def timestamp(self) -> tuple[int, int]: ...  # noqa: D102
    def headers(self) -> Sequence[tuple[str, bytes]] | None: ...  # noqa: D102


@dataclass(frozen=True)
class DeadLetter:
    """A row of `_dead_letters`.

    Attributes:
        windows: the starts (epoch ms) of the closed windows for which the event is too late.
        element: the index in the exploded array, or None if the dead letter is a whole record.
    """

    partition: int
    offset: int
    reason: str
    aggregation: str = ""
    field: str | None = None
    detail: str | None = None
    key: bytes | None = None
    value: bytes | None = None
    value_bytes: int | None = None
    event_time: int | None = None
    windows: tuple[int, ...] | None = None
    element: int | None = None


def dead_letter(
    message: Message,
    value: bytes,
    invalid: InvalidEvent,
    *,
    element: int | None = None,
    aggregation: str = "",
    event_time: int | None = None,
    windows: tuple[int, ...] | None = None,
) -> DeadLetter:
    """Create a dead letter with the content `value` for a record, or for one array element."""
    return DeadLetter(
        partition=message.partition(),
        offset=message.offset(),
        reason=str(invalid.reason),
        aggregation=aggregation,
        field=_storable(invalid.field, 200),
        detail=_storable(invalid.detail, 1000),
        key=message.key(),
        value=value[:STORED_VALUE_BYTES],
        value_bytes=len(value),
        event_time=event_time,
        windows=windows,
        element=element,
    )


def _storable(text: str | None, characters: int) -> str | None:
    if not text:
        return None
    return text[:characters].replace("\0", "\\0").encode("utf-8", "backslashreplace").decode()
