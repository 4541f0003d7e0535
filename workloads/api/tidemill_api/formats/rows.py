"""Rows as JSON, NDJSON and CSV."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any

import msgspec

from tidemill_api.query.selection import Column
from tidemill_api.query.values import encoder

log = logging.getLogger(__name__)

JSON, NDJSON, CSV = "application/json", "application/x-ndjson", "text/csv"
Row = Sequence[Any]
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""A text that begins so is run as a formula by spreadsheets, also with the wide forms of these characters."""


class RowEncoder:
    """Turns rows of psycopg into what answers hold.

    Args:
        columns: the columns, in the order of the rows' values.
        converters: by column name, in place of the usual one of its kind.
    """

    def __init__(self, columns: Sequence[Column], converters: dict[str, Callable[[Any], Any]] | None = None) -> None:
        self.columns = columns
        self.names = [column.name for column in columns]
        found = [(i, (converters or {}).get(c.name) or c.decode or encoder(c.kind)) for i, c in enumerate(columns)]
        self._converters = [(index, convert) for index, convert in found if convert is not None]

    def values(self, row: Row) -> list[Any]:
        """A row's values, ready for JSON."""
        values = list(row)
        for index, convert in self._converters:
            try:
                values[index] = convert(values[index])
            except Exception as error:
                # A damaged sketch, say: one value that cannot be read is null, all others are answered.
                log.warning("%s of a row cannot be read: %s: %s", self.names[index], type(error).__name__, error)
                values[index] = None
        return values

    def record(self, row: Row) -> dict[str, Any]:
        """A row as an object."""
        return dict(zip(self.names, self.values(row), strict=True))

    def ndjson(self, rows: Iterable[Row]) -> bytes:
        """Rows as lines of JSON."""
        return b"".join(msgspec.json.encode(self.record(row)) + b"\n" for row in rows)

    def csv(self, rows: Iterable[Row], *, header: bool = False) -> bytes:
        """Rows as RFC 4180 lines; a null is empty, an empty text is quoted.

        A text that a spreadsheet would run as a formula is set off by an apostrophe.
        """
        lines = [self.names] if header else []
        lines += [self.values(row) for row in rows]
        return "".join(",".join(map(_csv_text, line)) + "\r\n" for line in lines).encode()


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


def meta(columns: Sequence[Column]) -> list[dict[str, str]]:
    """Names and types of the columns."""
    return [{"name": column.name, "type": column.kind} for column in columns]


def page_body(
    columns: Sequence[Column], records: Sequence[dict[str, Any]], next_cursor: str | None, **further: Any
) -> bytes:
    """The body of a page."""
    return msgspec.json.encode({
        "meta": meta(columns),
        "data": records,
        "next_cursor": next_cursor,
        "truncated": next_cursor is not None,
        **further,
    })  # fmt: skip


@lru_cache(maxsize=1024)
def negotiate(suffix: str | None, accept: str | None) -> str:
    """The content type to answer with: the path's suffix decides, else the Accept header, else JSON."""
    if suffix is not None:
        return {"ndjson": NDJSON, "csv": CSV, "json": JSON}[suffix]
    ranked: list[tuple[float, str]] = []
    for part in (accept or "").split(","):
        media, *parameters = (piece.strip().lower() for piece in part.split(";"))
        quality = next((p.removeprefix("q=") for p in parameters if p.startswith("q=")), "1")
        known = {JSON: JSON, NDJSON: NDJSON, "application/ndjson": NDJSON, CSV: CSV}.get(media)
        if known:
            try:
                ranked.append((float(quality), known))
            except ValueError:
                continue
    best = max(ranked, key=lambda entry: entry[0], default=(0.0, JSON))
    return best[1] if best[0] > 0 else JSON
