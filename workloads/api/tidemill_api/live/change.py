"""The changes of aggregations, encoded once for all clients with equal filters."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import msgspec

from tidemill_api.query.selection import Filter
from tidemill_contract.decimals import scale_of

Key = bytes
Row = dict[str, Any]
MESSAGE_BYTES = 256 * 1024
"""Maximum size of the rows in a message, because common clients refuse messages over 1 MiB."""

_WAITING = 16
"""Maximum number of split entries that wait for their missing parts."""


@dataclass(frozen=True)
class RowFilter:
    """Applies filters to the group columns of rows. Row values have JSON types, such as text for times."""

    filters: tuple[Filter, ...] = ()

    def fits(self, row: Mapping[str, Any]) -> bool:
        """Return whether a row passes all filters."""
        return all(_fits(wanted, row.get(wanted.column)) for wanted in self.filters)


def _fits(wanted: Filter, value: Any) -> bool:
    if wanted.operator == "isnull":
        return bool((value is None) == wanted.values[0])
    if value is None:
        return wanted.operator == "ne"
    if wanted.kind == "timestamp":
        value = dt.datetime.fromisoformat(value)
    elif scale_of(wanted.kind) is not None:
        value = Decimal(value)
    if wanted.operator == "in":
        return value in wanted.values
    return _COMPARE[wanted.operator](value, wanted.values[0])


_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "eq": lambda a, b: bool(a == b),
    "ne": lambda a, b: bool(a != b),
    "gte": lambda a, b: bool(a >= b),
    "gt": lambda a, b: bool(a > b),
    "lte": lambda a, b: bool(a <= b),
    "lt": lambda a, b: bool(a < b),
}


class Entry(msgspec.Struct, frozen=True):
    """An entry of the Redis stream of changes. Processors write entries after each commit.

    Attributes:
        revs: the revisions (sequence numbers) of the commits that changed the rows.
        truncated: whether rows are missing, because of too many changes or a failed read.
        begin: whether the entry only announces that a processor starts writing entries.
        part_of: the aggregation's name, if more parts of a split entry follow. Otherwise empty.
        parts: the number of earlier parts, if this is the last part of a split entry. Otherwise 0.
    """

    aggregation: str = ""
    rev: int = 0
    revs: tuple[int, ...] = ()
    rows: tuple[Row, ...] = ()
    watermark: int | None = None
    closed_until: int | None = None
    version: int | None = None
    truncated: bool = False
    begin: bool = False
    part_of: str = ""
    parts: int = 0


_entry = msgspec.json.Decoder(Entry)


def read_entry(data: bytes) -> Entry:
    """Decode an entry of the stream.

    Raises:
        ValueError: the data is not an entry, or a row has no window.
    """
    entry = _entry.decode(data)
    if not all("window_start" in row for row in entry.rows):
        raise ValueError("a row without window_start")
    if entry.rev and not entry.revs:
        return msgspec.structs.replace(entry, revs=(entry.rev,))
    return entry


class Parts:
    """Joins the parts of large entries that processors have split."""

    def __init__(self) -> None:
        self._waiting: dict[tuple[str, int | None, int], list[tuple[Row, ...]]] = {}

    def take(self, entry: Entry) -> Entry | None:
        """Return the complete entry, or None if more parts of the entry will follow."""
        if entry.part_of:
            key = (entry.part_of, entry.version, entry.rev)
            self._waiting.setdefault(key, []).append(entry.rows)
            if len(self._waiting) > _WAITING:
                del self._waiting[next(iter(self._waiting))]
            return None
        if not entry.parts:
            return entry
        before = self._waiting.pop((entry.aggregation, entry.version, entry.rev), [])
        if len(before) != entry.parts:
            return entry
        rows = tuple(row for rows in (*before, entry.rows) for row in rows)
        return msgspec.structs.replace(entry, rows=rows, truncated=False)


def keyed(rows: Sequence[Row]) -> dict[Key, Row]:
    """Return the rows by key. A key is the JSON text of a row's group columns and `window_start`."""
    if not rows:
        return {}
    # The first columns of a row are the group columns and window_start.
    names = list(rows[0])
    key = names[: names.index("window_start") + 1]
    return {msgspec.json.encode([_plain(row[name]) for name in key]): row for row in rows}


def _plain(value: Any) -> Any:
    return value + 0.0 if value.__class__ is float else value


@dataclass(frozen=True, eq=False)
class Change:
    """The changed rows of one aggregation.

    Attributes:
        label: the highest revision of this change and of earlier changes. Clients receive the label as `rev`.
    """

    aggregation: str
    rev: int
    label: int
    rows: Mapping[Key, Row]
    _encoded: dict[Key, bytes] = field(default_factory=dict, init=False, repr=False)
    _chosen: dict[RowFilter, dict[Key, bytes]] = field(default_factory=dict, init=False, repr=False)
    _messages: dict[RowFilter, list[bytes]] = field(default_factory=dict, init=False, repr=False)

    def chosen(self, wanted: RowFilter) -> dict[Key, bytes]:
        """Return the encoded rows that pass a filter."""
        texts = self._chosen.get(wanted)
        if texts is None:
            texts = {key: self._text(key, row) for key, row in self.rows.items() if wanted.fits(row)}
            self._chosen[wanted] = texts
        return texts

    def _text(self, key: Key, row: Row) -> bytes:
        text = self._encoded.get(key)
        if text is None:
            text = self._encoded[key] = msgspec.json.encode(row)
        return text

    def messages(self, wanted: RowFilter) -> list[bytes]:
        """Return the `upsert` messages with the rows that pass a filter."""
        messages = self._messages.get(wanted)
        if messages is None:
            messages = self._messages[wanted] = upserts(self.aggregation, self.label, self.chosen(wanted).values())
        return messages


def upserts(aggregation: str, rev: int, rows: Iterable[bytes]) -> list[bytes]:
    """Return the `upsert` messages for encoded rows."""
    head = {"type": "upsert", "aggregation": aggregation, "rev": rev}
    return [with_rows(head, piece) for piece in pieces(rows)]


def pieces(rows: Iterable[bytes]) -> list[list[bytes]]:
    """Split encoded rows into lists that each fit into one message, unless a single row is larger."""
    chunks: list[list[bytes]] = []
    room = 0
    for row in rows:
        if room < len(row) or not chunks:
            chunks.append([])
            room = MESSAGE_BYTES
        chunks[-1].append(row)
        room -= len(row)
    return chunks


def with_rows(head: Mapping[str, Any], rows: Sequence[bytes]) -> bytes:
    """Return a JSON message with the members of `head` and the encoded rows."""
    return msgspec.json.encode(head)[:-1] + b',"rows":[' + b",".join(rows) + b"]}"
