"""A change of an aggregation, as live listeners get it: encoded once, whoever and however many listen."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from tidemill_api.query.selection import Filter

Key = bytes
Row = dict[str, Any]
MESSAGE_BYTES = 256 * 1024
"""Rows are spread over several messages beyond that: common clients refuse messages over 1 MiB."""

_WAITING = 16
"""Entries of so many processors may come in parts at the same time."""


@dataclass(frozen=True)
class RowFilter:
    """Filters on group columns, for rows as JSON has them. Equal filters share their encoded messages."""

    filters: tuple[Filter, ...] = ()

    def fits(self, row: Mapping[str, Any]) -> bool:
        """Whether a row is wanted."""
        return all(_fits(wanted, row.get(wanted.column)) for wanted in self.filters)


def _fits(wanted: Filter, value: Any) -> bool:
    """As the SQL of a filter decides it (`selection.condition`)."""
    if wanted.operator == "isnull":
        return bool((value is None) == wanted.values[0])
    if value is None:
        return wanted.operator == "ne"
    if wanted.kind == "timestamp":
        value = dt.datetime.fromisoformat(value)
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
    """What a processor writes to the stream after commits and closings.

    Attributes:
        revs: revisions that the rows are of, each row's latest.
        truncated: rows were left out.
        begin: the processor publishes from here on; what it committed before was not published.
        version: of the aggregation's table; None: a processor that does not tell.
        part_of: the rows are the first ones of a later entry of this aggregation and `rev`.
        parts: so many entries came before with rows of this one, which is `truncated` without them.
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
    """An entry of the stream.

    Raises:
        ValueError: it is none, or a row is not of a window.
    """
    entry = _entry.decode(data)
    if not all("window_start" in row for row in entry.rows):
        raise ValueError("a row without window_start")
    if entry.rev and not entry.revs:
        return msgspec.structs.replace(entry, revs=(entry.rev,))
    return entry


class Parts:
    """Puts the rows of entries together that were too many for one."""

    def __init__(self) -> None:
        self._waiting: dict[tuple[str, int | None, int], list[tuple[Row, ...]]] = {}

    def take(self, entry: Entry) -> Entry | None:
        """A whole entry; None: more of it comes. One whose parts were missed stays truncated."""
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
    """Rows of one aggregation by group and window."""
    if not rows:
        return {}
    # Group columns come first, then window_start.
    names = list(rows[0])
    key = names[: names.index("window_start") + 1]
    return {msgspec.json.encode([_plain(row[name]) for name in key]): row for row in rows}


def _plain(value: Any) -> Any:
    """The value that stands for all that equal it: of both zeros, which are one group, the positive."""
    return value + 0.0 if value.__class__ is float else value


@dataclass(frozen=True, eq=False)
class Change:
    """Rows of one aggregation that changed, newest versions.

    Attributes:
        rev: the newest revision among the rows.
        label: the revision that listeners are told; within an aggregation it never falls, while entries of several
            processors may come in another order than they were committed in.
    """

    aggregation: str
    rev: int
    label: int
    rows: Mapping[Key, Row]
    _encoded: dict[Key, bytes] = field(default_factory=dict, init=False, repr=False)
    _chosen: dict[RowFilter, dict[Key, bytes]] = field(default_factory=dict, init=False, repr=False)
    _messages: dict[RowFilter, list[bytes]] = field(default_factory=dict, init=False, repr=False)

    def chosen(self, wanted: RowFilter) -> dict[Key, bytes]:
        """Encoded rows that fit a filter."""
        found = self._chosen.get(wanted)
        if found is None:
            found = {key: self._text(key, row) for key, row in self.rows.items() if wanted.fits(row)}
            self._chosen[wanted] = found
        return found

    def _text(self, key: Key, row: Row) -> bytes:
        text = self._encoded.get(key)
        if text is None:
            text = self._encoded[key] = msgspec.json.encode(row)
        return text

    def messages(self, wanted: RowFilter) -> list[bytes]:
        """The `upsert` messages with the rows that fit a filter."""
        found = self._messages.get(wanted)
        if found is None:
            found = self._messages[wanted] = upserts(self.aggregation, self.label, self.chosen(wanted).values())
        return found


def upserts(aggregation: str, rev: int, rows: Iterable[bytes]) -> list[bytes]:
    """`upsert` messages of encoded rows; none without rows."""
    head = {"type": "upsert", "aggregation": aggregation, "rev": rev}
    return [with_rows(head, piece) for piece in pieces(rows)]


def pieces(rows: Iterable[bytes]) -> list[list[bytes]]:
    """Encoded rows, by what one message holds."""
    found: list[list[bytes]] = []
    room = 0
    for row in rows:
        if room < len(row) or not found:
            found.append([])
            room = MESSAGE_BYTES
        found[-1].append(row)
        room -= len(row)
    return found


def with_rows(head: Mapping[str, Any], rows: Sequence[bytes]) -> bytes:
    """A message with encoded rows."""
    return msgspec.json.encode(head)[:-1] + b',"rows":[' + b",".join(rows) + b"]}"
