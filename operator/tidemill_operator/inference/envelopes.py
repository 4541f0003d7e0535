"""Detects and removes the envelopes of sampled events (Debezium, Kafka Connect, CloudEvents)."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

_SAMPLE_EVENTS = 100
_MIN_SHARE = 0.9
"""An envelope is detected if at least this share of the events has it."""


def unwrap_events(events: Iterable[Any]) -> tuple[str, Iterator[Any]]:
    """Return the events' envelope, as in `source.format.envelope`, and the unwrapped events.

    The first events determine the envelope. Debezium's delete events are left out.
    """
    first = list(itertools.islice(iterator := iter(events), _SAMPLE_EVENTS))
    counts = Counter(_envelope(event) for event in first if isinstance(event, Mapping))
    del counts[_TOMBSTONE]
    envelope, count = counts.most_common(1)[0] if counts else ("none", 0)
    rest = itertools.chain(first, iterator)
    if envelope == "none" or count < _MIN_SHARE * counts.total():
        return "none", rest
    return envelope, (row for event in rest if (row := _unwrap(event, envelope)) is not _DELETED)


_DELETED = object()
_TOMBSTONE = "tombstone"
"""A Kafka Connect envelope with a null payload. With `connect` or `debezium`, such an event marks a deleted row."""


def _envelope(event: Mapping[str, Any]) -> str:
    payload, rows = event.get("payload"), [event[name] for name in ("before", "after") if name in event]
    if "op" in event and rows and all(row is None or isinstance(row, Mapping) for row in rows):
        return "debezium"
    if "schema" in event and isinstance(payload, Mapping):
        return "debezium" if _envelope(payload) == "debezium" else "connect"
    if event.keys() == {"schema", "payload"} and payload is None:
        return _TOMBSTONE
    return "cloudevents" if "specversion" in event and isinstance(event.get("data"), Mapping) else "none"


def _unwrap(event: Any, envelope: str) -> Any:
    """Return the event in the given envelope, or None if the value has no such envelope."""
    own_envelope = _envelope(event) if isinstance(event, Mapping) else "none"
    if own_envelope == _TOMBSTONE and envelope in ("connect", "debezium"):
        return _DELETED
    if own_envelope != envelope:
        return None
    if envelope == "cloudevents":
        return event["data"]
    if envelope == "connect":
        return event["payload"]
    change = event if "op" in event else event["payload"]
    return _DELETED if change.get("after") is None else change["after"]
