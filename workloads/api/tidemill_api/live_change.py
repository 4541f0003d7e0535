"""A change of an aggregation, as live listeners get it: encoded once, whoever and however many listen."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import msgspec

from tidemill_api.selection import Filter
from tidemill_contract.times import rfc3339_ms

Key = bytes
Row = dict[str, Any]


def time_ms(value: int | None) -> str | None:
    """Epoch milliseconds as RFC 3339."""
    return None if value is None else rfc3339_ms(value)


@dataclass(frozen=True)
class RowFilter:
    """Filters on group columns, for rows as JSON has them. Equal filters share their encoded messages."""

    filters: tuple[Filter, ...] = ()

    def fits(self, row: Mapping[str, Any]) -> bool:
        """Whether a row is wanted."""
        return all(_fits(wanted, row.get(wanted.column)) for wanted in self.filters)


def _fits(wanted: Filter, value: Any) -> bool:
    if wanted.operator == "isnull":
        return (value is None) == wanted.values[0]
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


@dataclass(frozen=True)
class Change:
    """Rows of one aggregation that changed.

    Attributes:
        resume: the token of a listener that has got everything up to here; empty: there is none.
        begin: what came before this is incomplete; rows is empty.
    """

    aggregation: str
    rev: int
    rows: tuple[Row, ...]
    resume: str = ""
    watermark_ms: int | None = None
    closed_until_ms: int | None = None
    degraded: bool = False
    begin: bool = False
    _chosen: dict[RowFilter, dict[Key, bytes]] = field(default_factory=dict, compare=False, repr=False)
    _messages: dict[RowFilter, bytes] = field(default_factory=dict, compare=False, repr=False)

    @cached_property
    def _encoded(self) -> list[tuple[Key, bytes, Row]]:
        return [(row_key(row, self._groups), msgspec.json.encode(row), row) for row in self.rows]

    @property
    def _groups(self) -> list[str]:
        # Group columns come first, then window_start.
        names = list(self.rows[0])
        return names[: names.index("window_start")]

    def chosen(self, wanted: RowFilter) -> dict[Key, bytes]:
        """Encoded rows by (group, window) that fit a filter."""
        found = self._chosen.get(wanted)
        if found is None:
            found = {key: text for key, text, row in self._encoded if wanted.fits(row)} if self.rows else {}
            self._chosen[wanted] = found
        return found

    def upsert(self, wanted: RowFilter) -> bytes | None:
        """The message with these rows; None: no row is wanted."""
        rows = self.chosen(wanted)
        if not rows:
            return None
        message = self._messages.get(wanted)
        if message is None:
            message = self._messages[wanted] = upsert_message(self.aggregation, self.rev, rows.values())
        return message


def row_key(row: Mapping[str, Any], groups: list[str]) -> Key:
    """What a row is an update of: its group and window."""
    return msgspec.json.encode([*(row[name] for name in groups), row["window_start"]])


def upsert_message(aggregation: str, rev: int, rows: Iterable[bytes]) -> bytes:
    """An `upsert` of encoded rows; each carries the message's rev."""
    head = msgspec.json.encode({"type": "upsert", "aggregation": aggregation, "rev": rev})
    return head[:-1] + b',"rows":[' + b",".join(rows) + b"]}"


def progress_message(
    watermark_ms: int | None, closed_until_ms: Mapping[str, int | None], resume: str, *, degraded: bool
) -> bytes:
    """A `progress`."""
    return msgspec.json.encode({
        "type": "progress",
        "watermark": time_ms(watermark_ms),
        "closed_until": {name: time_ms(value) for name, value in closed_until_ms.items()},
        "resume": resume or None,
        "degraded": degraded,
    })  # fmt: skip


def from_entry(data: bytes, resume: str) -> Change:
    """A change from an entry of the stream.

    Raises:
        ValueError: it is not one (msgspec.DecodeError is a ValueError).
    """
    entry = msgspec.json.decode(data)
    if not isinstance(entry, dict) or entry.get("begin"):
        return Change("", 0, (), resume=resume, begin=True)
    if not isinstance(entry.get("aggregation"), str):
        raise ValueError("an entry without an aggregation")
    return Change(
        entry["aggregation"],
        int(entry.get("rev") or 0),
        tuple(entry.get("rows") or ()),
        resume=resume,
        watermark_ms=entry.get("watermark"),
        closed_until_ms=entry.get("closed_until"),
    )


def truncated(data: bytes) -> bool:
    """Whether an entry left rows out, which are to be read from the database."""
    return b'"truncated":true' in data.replace(b" ", b"")
