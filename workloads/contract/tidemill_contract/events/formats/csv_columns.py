"""Read many lines of CSV at once, column by column.

Lines that may be invalid are converted to JSON and validated one by one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import repeat
from typing import Any

from tidemill_contract.decimals import DECIMAL
from tidemill_contract.events.decoder import DecodedBatch
from tidemill_contract.events.formats.csv_lines import CsvLines, without_paths
from tidemill_contract.events.formats.opened_reader import OpenedReader
from tidemill_contract.events.formats.typed import TypedDecoder
from tidemill_contract.events.invalid_events import InvalidEvent
from tidemill_contract.events.timestamps import UNITS
from tidemill_contract.resource.source import FieldSpec
from tidemill_contract.resource.spec import PipelineSpec

_INTEGER, _FRACTION, _EXPONENT = r"-?(?:0|[1-9][0-9]*)", r"(?:\.[0-9]+)?", r"(?:[eE][+-]?[0-9]+)?"
_COLUMN_PATTERNS = {
    kind: re.compile(f"(?:(?:{cell})?\n)*")
    for kind, cell in {
        "integer": _INTEGER,
        # The pattern excludes -0, because the JSON reader reads -0 as the integer 0.
        "number": rf"(?:0|-?[1-9][0-9]*|-0(?=\.)){_FRACTION}{_EXPONENT}",
        DECIMAL: f"{_INTEGER}{_FRACTION}",
    }.items()
}
_BOOLEANS = {"true": True, "false": False, "": None}
_UNUSUAL_CHARACTERS = ('"', "\r", "\0", "\ufeff")
_MAX_BYTES = 64 * 1024
"""The maximum size (in bytes) of a record for reading by column. The CSV reader refuses cells above 128 KiB."""
_GROUP_SIZE = 64
_INTEGER_LIMIT = 2**63


class UnusualError(Exception):
    """Raised if `CsvReader` must read the lines one by one, not column by column."""


class CsvReader(OpenedReader):
    """Reads lines of CSV."""

    def __init__(self, spec: PipelineSpec, *, exact: bool) -> None:
        lines = CsvLines(spec)
        super().__init__(without_paths(spec), lines, exact=exact)
        fields = {field.name: field for field in spec.source.fields if field.origin == "value"}
        self._typed_decoder = TypedDecoder(without_paths(spec), exact=exact, read_names=fields.keys())
        positions = {name: index for index, name in enumerate(lines.columns)}
        self._parsers: list[tuple[int, Callable[[list[str]], Sequence[Any]]] | None] = [
            (positions[column], column_parser(fields[name]))
            if name in fields and (column := str(fields[name].member_path[0])) in positions
            else None
            for name in self._typed_decoder.columns
        ]
        self._column_count, self._delimiter, self._exact = len(lines.columns), lines.delimiter, exact

    def read(self, raws: Sequence[bytes], now_ms: int, tombstones: Collection[int]) -> DecodedBatch:
        """Decode lines of CSV."""
        if tombstones or not raws:
            return super().read(raws, now_ms, tombstones)
        decoded = self._read_together(raws, now_ms)
        if decoded is not None:
            return decoded
        events: list[Any] = []
        micros: list[int] = []
        invalid: dict[int, InvalidEvent] = {}
        for start in range(0, len(raws), _GROUP_SIZE):
            group = raws[start : start + _GROUP_SIZE]
            decoded = self._read_together(group, now_ms) if len(raws) > _GROUP_SIZE else None
            decoded = decoded or super().read(group, now_ms, ())
            events += decoded.events
            micros += decoded.micros or [0] * len(group)
            invalid |= {start + index: error for index, error in decoded.invalid.items()}
        return DecodedBatch(events, invalid, micros if self._exact else None)

    def _read_together(self, raws: Sequence[bytes], now_ms: int) -> DecodedBatch | None:
        if max(map(len, raws)) > _MAX_BYTES:
            return None
        try:
            cells = split_columns(raws, self._column_count, self._delimiter)
            columns = [
                repeat(None, len(raws)) if parser is None else parser[1](cells[parser[0]]) for parser in self._parsers
            ]
        except Exception:  # after any error, the events are read one by one
            return None
        return self._typed_decoder.validate(list(map(self._typed_decoder.event_class, *columns)), now_ms)


def split_columns(raws: Sequence[bytes], column_count: int, delimiter: str) -> list[list[str]]:
    """Split CSV lines, each with `column_count` cells, and return the cells by column.

    Raises:
        UnusualError: a split at the delimiters is not enough, for example because of quotes.
        UnicodeDecodeError: the lines are not UTF-8.
    """
    text = b"\n".join(raws).decode()
    if any(unusual in text for unusual in _UNUSUAL_CHARACTERS):
        raise UnusualError
    lines = text.split("\n")
    if len(lines) != len(raws) or set(map(str.count, lines, repeat(delimiter))) != {column_count - 1} or "" in lines:
        raise UnusualError
    cells = text.replace("\n", delimiter).split(delimiter)
    return [cells[index::column_count] for index in range(column_count)]


def column_parser(field: FieldSpec) -> Callable[[list[str]], Sequence[Any]]:
    """Return the function from a column of cells to a field's values. For an empty cell, the value is None."""
    parsers: Mapping[str, Callable[[list[str]], Sequence[Any]]] = {
        "string": _parse_texts, "integer": _parse_integers, "number": _parse_numbers,
        "boolean": _parse_booleans, "timestamp": _parse_times,
    }  # fmt: skip
    if field.type == DECIMAL:
        scale = field.scale or 0
        return lambda cells: _parse_decimals(cells, scale)
    if field.type == "timestamp" and field.format in UNITS:
        return _parse_integers
    return parsers[field.type]


def _parse_texts(cells: list[str]) -> Sequence[Any]:
    return [cell or None for cell in cells] if "" in cells else cells


def _check_cells(cells: list[str], kind: str) -> list[str]:
    for candidate in (cells, list(map(str.strip, cells))):
        if _COLUMN_PATTERNS[kind].fullmatch("\n".join(candidate) + "\n"):
            return candidate
    raise UnusualError


def _parse_integers(cells: list[str]) -> Sequence[Any]:
    cells = _check_cells(cells, "integer")
    values = [int(cell) if cell else None for cell in cells] if "" in cells else list(map(int, cells))
    non_null = [value for value in values if value is not None]
    if non_null and not (min(non_null) >= -_INTEGER_LIMIT and max(non_null) < _INTEGER_LIMIT):
        raise UnusualError
    return values


def _parse_numbers(cells: list[str]) -> Sequence[Any]:
    cells = _check_cells(cells, "number")
    return [float(cell) if cell else None for cell in cells] if "" in cells else list(map(float, cells))


def _parse_booleans(cells: list[str]) -> Sequence[Any]:
    try:
        return [_BOOLEANS[cell] for cell in map(str.strip, cells)]
    except KeyError:
        raise UnusualError from None


def _parse_times(cells: list[str]) -> Sequence[Any]:
    try:
        return _parse_integers(cells)
    except UnusualError:
        cells = list(map(str.strip, cells))
        if not all(":" in cell for cell in cells if cell):
            raise
        return _parse_texts(cells)


def _parse_decimals(cells: list[str], scale: int) -> Sequence[Any]:
    return [_parse_scaled(cell, scale) if cell else None for cell in _check_cells(cells, DECIMAL)]


def _parse_scaled(cell: str, scale: int) -> int:
    whole, _, fraction = cell.partition(".")
    if len(fraction) > scale:
        raise UnusualError
    return int(whole + fraction.ljust(scale, "0"))
