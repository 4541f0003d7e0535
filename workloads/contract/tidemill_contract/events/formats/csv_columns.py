"""Read many lines of CSV at once, column by column.

Lines that may be invalid are converted to JSON and validated one by one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import repeat
from typing import Any

from tidemill_contract.decimals import DECIMAL
from tidemill_contract.events.decoder import Decoded
from tidemill_contract.events.formats.csv_lines import CsvLines, flat
from tidemill_contract.events.formats.opened import OpenedReader
from tidemill_contract.events.formats.typed import TypedDecoder
from tidemill_contract.events.timestamps import UNITS
from tidemill_contract.events.verdicts import InvalidEvent
from tidemill_contract.resource.source import FieldSpec
from tidemill_contract.resource.spec import PipelineSpec

_INTEGER, _FRACTION, _EXPONENT = r"-?(?:0|[1-9][0-9]*)", r"(?:\.[0-9]+)?", r"(?:[eE][+-]?[0-9]+)?"
_COLUMNS = {
    kind: re.compile(f"(?:(?:{cell})?\n)*")
    for kind, cell in {
        "integer": _INTEGER,
        # The pattern excludes -0, because the JSON reader reads -0 as the integer 0.
        "number": rf"(?:0|-?[1-9][0-9]*|-0(?=\.)){_FRACTION}{_EXPONENT}",
        DECIMAL: f"{_INTEGER}{_FRACTION}",
    }.items()
}
_BOOLEANS = {"true": True, "false": False, "": None}
_UNUSUAL = ('"', "\r", "\0", "\ufeff")
_MOST_BYTES = 64 * 1024
"""The maximum size (in bytes) of a record for reading by column. The CSV reader refuses cells above 128 KiB."""
_GROUP = 64
_LIMIT = 2**63


class UnusualError(Exception):
    """Raised if `CsvReader` must read the lines one by one, not column by column."""


class CsvReader(OpenedReader):
    """Reads lines of CSV."""

    def __init__(self, spec: PipelineSpec, *, exact: bool) -> None:
        lines = CsvLines(spec)
        super().__init__(flat(spec), lines, exact=exact)
        fields = {field.name: field for field in spec.source.fields if field.origin == "value"}
        self._typed = TypedDecoder(flat(spec), exact=exact, read=fields.keys())
        places = {name: place for place, name in enumerate(lines.columns)}
        self._makers: list[tuple[int, Callable[[list[str]], Sequence[Any]]] | None] = [
            (places[column], column_maker(fields[name]))
            if name in fields and (column := str(fields[name].member[0])) in places
            else None
            for name in self._typed.columns
        ]
        self._number, self._delimiter, self._exact = len(lines.columns), lines.delimiter, exact

    def read(self, raws: Sequence[bytes], now_ms: int, tombstones: Collection[int]) -> Decoded:
        """Decode lines of CSV."""
        if tombstones or not raws:
            return super().read(raws, now_ms, tombstones)
        decoded = self._together(raws, now_ms)
        if decoded is not None:
            return decoded
        events: list[Any] = []
        micros: list[int] = []
        invalid: dict[int, InvalidEvent] = {}
        for start in range(0, len(raws), _GROUP):
            group = raws[start : start + _GROUP]
            part = (self._together(group, now_ms) if len(raws) > _GROUP else None) or super().read(group, now_ms, ())
            events += part.events
            micros += part.micros or [0] * len(group)
            invalid |= {start + index: verdict for index, verdict in part.invalid.items()}
        return Decoded(events, invalid, micros if self._exact else None)

    def _together(self, raws: Sequence[bytes], now_ms: int) -> Decoded | None:
        if max(map(len, raws)) > _MOST_BYTES:
            return None
        try:
            cells = split(raws, self._number, self._delimiter)
            columns = [
                repeat(None, len(raws)) if maker is None else maker[1](cells[maker[0]]) for maker in self._makers
            ]
        except Exception:  # after any error, the events are read one by one
            return None
        return self._typed.judged(list(map(self._typed.row, *columns)), now_ms)


def split(raws: Sequence[bytes], number: int, delimiter: str) -> list[list[str]]:
    """Split CSV lines, each with `number` cells, and return the cells by column.

    Raises:
        UnusualError: a split at the delimiters is not enough, for example because of quotes.
        UnicodeDecodeError: the lines are not UTF-8.
    """
    text = b"\n".join(raws).decode()
    if any(unusual in text for unusual in _UNUSUAL):
        raise UnusualError
    lines = text.split("\n")
    if len(lines) != len(raws) or set(map(str.count, lines, repeat(delimiter))) != {number - 1} or "" in lines:
        raise UnusualError
    cells = text.replace("\n", delimiter).split(delimiter)
    return [cells[place::number] for place in range(number)]


def column_maker(field: FieldSpec) -> Callable[[list[str]], Sequence[Any]]:
    """Return the function from a column of cells to a field's values. For an empty cell, the value is None."""
    makers: Mapping[str, Callable[[list[str]], Sequence[Any]]] = {
        "string": _texts, "integer": _integers, "number": _numbers, "boolean": _booleans, "timestamp": _times,
    }  # fmt: skip
    if field.type == DECIMAL:
        scale = field.scale or 0
        return lambda cells: _decimals(cells, scale)
    if field.type == "timestamp" and field.format in UNITS:
        return _integers
    return makers[field.type]


def _texts(cells: list[str]) -> Sequence[Any]:
    return [cell or None for cell in cells] if "" in cells else cells


def _checked(cells: list[str], kind: str) -> list[str]:
    for some in (cells, list(map(str.strip, cells))):
        if _COLUMNS[kind].fullmatch("\n".join(some) + "\n"):
            return some
    raise UnusualError


def _integers(cells: list[str]) -> Sequence[Any]:
    cells = _checked(cells, "integer")
    values = [int(cell) if cell else None for cell in cells] if "" in cells else list(map(int, cells))
    non_null = [value for value in values if value is not None]
    if non_null and not (min(non_null) >= -_LIMIT and max(non_null) < _LIMIT):
        raise UnusualError
    return values


def _numbers(cells: list[str]) -> Sequence[Any]:
    cells = _checked(cells, "number")
    return [float(cell) if cell else None for cell in cells] if "" in cells else list(map(float, cells))


def _booleans(cells: list[str]) -> Sequence[Any]:
    try:
        return [_BOOLEANS[cell] for cell in map(str.strip, cells)]
    except KeyError:
        raise UnusualError from None


def _times(cells: list[str]) -> Sequence[Any]:
    try:
        return _integers(cells)
    except UnusualError:
        cells = list(map(str.strip, cells))
        if not all(":" in cell for cell in cells if cell):
            raise
        return _texts(cells)


def _decimals(cells: list[str], scale: int) -> Sequence[Any]:
    return [_scaled(cell, scale) if cell else None for cell in _checked(cells, DECIMAL)]


def _scaled(cell: str, scale: int) -> int:
    whole, _, part = cell.partition(".")
    if len(part) > scale:
        raise UnusualError
    return int(whole + part.ljust(scale, "0"))
