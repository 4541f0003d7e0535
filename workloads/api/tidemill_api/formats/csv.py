"""Writes CSV as in RFC 4180, in files that are safe to open in spreadsheets."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import msgspec

from tidemill_api.formats.base import Converters, Format, Row
from tidemill_api.formats.rows import RowEncoder, json_converter
from tidemill_api.query.selection import Column

_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""A text with one of these first characters may run as a formula in spreadsheets."""


class CsvWriter:
    """Writes a line of column names, and then one line for each row."""

    def __init__(self, columns: Sequence[Column], converters: Converters | None = None) -> None:
        self.columns = columns
        # Write decimals as numbers, because `_csv_text` puts an apostrophe before texts such as "-1".
        make_converter = partial(json_converter, decimals_as_numbers=True)
        self._encoder = RowEncoder(columns, converters, make_converter=make_converter)

    def head(self) -> bytes:
        """Return the line of column names."""
        return _lines([self._encoder.names])

    def batch(self, rows: Sequence[Row]) -> bytes:
        """Return one line of CSV for each row."""
        return _lines(map(self._encoder.values, rows))

    def tail(self) -> bytes:
        """Return no bytes, because CSV has no footer."""
        return b""


def _lines(rows: Iterable[Sequence[Any]]) -> bytes:
    return "".join(",".join(map(_csv_text, row)) + "\r\n" for row in rows).encode()


def _csv_text(value: Any) -> str:
    match value:
        case None:
            return ""
        case bool():
            return "true" if value else "false"
        case int():
            return str(value)
        case float():
            return repr(value)
        case msgspec.Raw():
            return bytes(value).decode()
        case dict() | list():
            value = msgspec.json.encode(value).decode()
    if isinstance(value, str) and value.startswith(_FORMULA):
        value = "'" + value
    quoted = not value or any(character in value for character in ',"\r\n')
    return '"' + value.replace('"', '""') + '"' if quoted else str(value)


FORMAT = Format(
    "CSV", "csv", "text/csv",
    'A line of column names, then one line for each row (RFC 4180). A null is an empty cell, and an empty text is `""`.'
    " Lists and objects are JSON in a cell. A text like a spreadsheet formula has a leading apostrophe.",
    CsvWriter,
    content_type="text/csv; charset=utf-8; header=present",
)  # fmt: skip
