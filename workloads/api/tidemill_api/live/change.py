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

_MAX_WAITING = 16
"""Maximum number of split entries that wait for their missing parts."""


@dataclass(frozen=True)
class RowFilter:
    """Applies filters to the group columns of rows. Row values have JSON types, such as text for times."""

    filters: tuple[Filter, ...] = ()

    def matches(self, row: Mapping[str, Any]) -> bool:
        """Return whether a row passes all filters."""
        return all(_matches(column_filter, row.get(column_filter.column)) for column_filter in self.filters)


def _matches(column_filter: Filter, value: Any) -> bool:
    if column_filter.operator == "isnull":
        return bool((value is None) == column_filter.values[0])
    if value is None:
        return column_filter.operator == "ne"
    if column_filter.kind == "timestamp":
        value = dt.datetime.fromisoformat(value)
    elif scale_of(column_filter.kind) is not None:
        value = Decimal(value)
    if column_filter.operator == "in":
        return value in column_filter.values
    return _COMPARE[column_filter.operator](value, column_filter.values[0])


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


_decoder = msgspec.json.Decoder(Entry)


def read_entry(data: bytes) -> Entry:
    """Decode an entry of the stream.

    Raises:
        ValueError: the data is not an entry, or a row has no window.
    """
    entry = _decoder.decode(data)
    if not all("window_start" in row for row in entry.rows):
        raise ValueError("a row without window_start")
    if entry.rev and not entry.revs:
        return msgspec.structs.replace(entry, revs=(entry.rev,))
    return entry


class PartAssembler:
    """Joins the parts of large entries that processors have split."""

    def __init__(self) -> None:
        self._waiting: dict[tuple[str, int | None, int], list[tuple[Row, ...]]] = {}

    def add(self, entry: Entry) -> Entry | None:
        """Return the complete entry, or None if more parts of the entry will follow."""
        if entry.part_of:
            key = (entry.part_of, entry.version, entry.rev)
            self._waiting.setdefault(key, []).append(entry.rows)
            if len(self._waiting) > _MAX_WAITING:
                del self._waiting[next(iter(self._waiting))]
            return None
        if not entry.parts:
            return entry
        earlier_parts = self._waiting.pop((entry.aggregation, entry.version, entry.rev), [])
        if len(earlier_parts) != entry.parts:
            return entry
        rows = tuple(row for rows in (*earlier_parts, entry.rows) for row in rows)
        return msgspec.structs.replace(entry, rows=rows, truncated=False)


def rows_by_key(rows: Sequence[Row]) -> dict[Key, Row]:
    """Return the rows by key. A key is the JSON text of a row's group columns and `window_start`."""
    if not rows:
        return {}
    # The first columns of a row are the group columns and window_start.
    names = list(rows[0])
    key = names[: names.index("window_start") + 1]
    return {msgspec.json.encode([_without_negative_zero(row[name]) for name in key]): row for row in rows}


def _without_negative_zero(value: Any) -> Any:
    return value + 0.0 if value.__class__ is float else value


@dataclass(frozen=True, eq=False)
class Change:
    """The changed rows of one aggregation.

    Attributes:
        max_rev: the highest revision of this change and of earlier changes. Clients receive it as `rev`.
    """

    aggregation: str
    rev: int
    max_rev: int
    rows: Mapping[Key, Row]
    _encoded: dict[Key, bytes] = field(default_factory=dict, init=False, repr=False)
    _encoded_by_filter: dict[RowFilter, dict[Key, bytes]] = field(default_factory=dict, init=False, repr=False)
    _messages_by_filter: dict[RowFilter, list[bytes]] = field(default_factory=dict, init=False, repr=False)

    def encoded_rows(self, row_filter: RowFilter) -> dict[Key, bytes]:
        """Return the encoded rows that pass a filter."""
        texts = self._encoded_by_filter.get(row_filter)
        if texts is None:
            texts = {key: self._encode_row(key, row) for key, row in self.rows.items() if row_filter.matches(row)}
            self._encoded_by_filter[row_filter] = texts
        return texts

    def _encode_row(self, key: Key, row: Row) -> bytes:
        text = self._encoded.get(key)
        if text is None:
            text = self._encoded[key] = msgspec.json.encode(row)
        return text

    def messages(self, row_filter: RowFilter) -> list[bytes]:
        """Return the `upsert` messages with the rows that pass a filter."""
        messages = self._messages_by_filter.get(row_filter)
        if messages is None:
            messages = self._messages_by_filter[row_filter] = upsert_messages(
                self.aggregation, self.max_rev, self.encoded_rows(row_filter).values()
            )
        return messages


def upsert_messages(aggregation: str, rev: int, rows: Iterable[bytes]) -> list[bytes]:
    """Return the `upsert` messages for encoded rows."""
    head = {"type": "upsert", "aggregation": aggregation, "rev": rev}
    return [message_with_rows(head, piece) for piece in split_rows(rows)]


def split_rows(rows: Iterable[bytes]) -> list[list[bytes]]:
    """Split encoded rows into lists that each fit into one message, unless a single row is larger."""
    chunks: list[list[bytes]] = []
    bytes_left = 0
    for row in rows:
        if bytes_left < len(row) or not chunks:
            chunks.append([])
            bytes_left = MESSAGE_BYTES
        chunks[-1].append(row)
        bytes_left -= len(row)
    return chunks


def message_with_rows(head: Mapping[str, Any], rows: Sequence[bytes]) -> bytes:
    """Return a JSON message with the members of `head` and the encoded rows."""
    return msgspec.json.encode(head)[:-1] + b',"rows":[' + b",".join(rows) + b"]}"
