"""Cuts the events of a file into batches. Ingest recognises a repeated batch by its key."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from tidemill_contract.events.fields import MAX_EVENT_BYTES
from tidemill_operator.event_files.event_file import Event

MAX_EVENTS = 5_000
MAX_BYTES = 4 * 1024 * 1024
"""Maximum numbers of events and of bytes in a batch. Both are below ingest's limits for a request."""


@dataclass(frozen=True)
class Batch:
    """Events that are sent in one request.

    Attributes:
        first: how many events of the file precede the batch.
        lines: for each event, the line of the file where it begins.
        key: the Idempotency-Key, which is the same whenever these events of the file are sent.
    """

    first: int
    lines: tuple[int, ...]
    body: bytes
    key: str

    def event(self, index: int) -> bytes:
        """Return one event of the batch."""
        return self.body.split(b"\n")[index]


def cut_batches(
    events: Iterable[Event | None], *, identity: str, first: int = 0, max_events: int = MAX_EVENTS
) -> Iterator[Batch]:
    """Yield the batches of a file.

    Args:
        events: the events of the file. A None ends the current batch early.
        identity: part of the keys that identifies the file and the pipeline.
        first: how many events of the file precede `events`.
        max_events: the maximum number of events in a batch. A different maximum changes the batches' keys.
    """
    lines: list[int] = []
    data: list[bytes] = []
    size = 0
    for event in events:
        if lines and (
            event is None or len(lines) >= max_events or size + min(len(event.data), MAX_EVENT_BYTES) > MAX_BYTES
        ):
            yield _batch(lines, data, identity, first)
            first += len(lines)
            lines, data, size = [], [], 0
        if event is not None:
            # Do not send the rest of an overlong event, because ingest would only discard it. One byte over the limit
            # is enough for ingest to refuse the event.
            sent_data = event.data[: MAX_EVENT_BYTES + 1]
            lines.append(event.line)
            data.append(sent_data)
            size += len(sent_data) + 1
    if lines:
        yield _batch(lines, data, identity, first)


def _batch(lines: list[int], data: list[bytes], identity: str, first: int) -> Batch:
    body = b"\n".join(data)
    digest = hashlib.blake2b(body, digest_size=16)
    digest.update(f"\n{identity}\n{first}".encode())
    return Batch(first, tuple(lines), body, f"send-{digest.hexdigest()}")
