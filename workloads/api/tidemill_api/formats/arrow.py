"""Arrow IPC streams: typed columns in record batches of bounded size, for pyarrow, pandas, polars and R."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any

import msgspec
import polars as pl

from tidemill_api.formats.base import Converters, Format, Row
from tidemill_api.formats.rows import RowEncoder
from tidemill_api.query.selection import Column
from tidemill_chassis.web.problems import Problem
from tidemill_contract.times import read_time

_TIME = pl.Datetime("us", "UTC")
_TYPES: dict[str, Any] = {
    "string": pl.String, "integer": pl.Int64, "number": pl.Float64, "boolean": pl.Boolean, "timestamp": _TIME,
    "object": pl.String,
}  # fmt: skip
_LEAST, _GREATEST = -(2**63), 2**63 - 1
# A stream is a sequence of messages, the schema first, then two words that end it. A message begins with four bytes of
# ones and the length of its description (Arrow's "encapsulated message format").
_MARK_BYTES = 4
_END = b"\xff\xff\xff\xff\0\0\0\0"


class ArrowWriter:
    """Writes one stream: its schema, a record batch for each batch of rows, its end."""

    def __init__(self, columns: Sequence[Column], converters: Converters | None = None) -> None:
        self.columns = columns
        self._encoder = RowEncoder(columns, converters, of_kind=_as_it_is)
        self._series = [(column.name, _data_type(column), _shaper(column)) for column in columns]
        empty = _stream(pl.DataFrame(schema={name: kind for name, kind, _ in self._series}))
        described = int.from_bytes(empty[_MARK_BYTES : 2 * _MARK_BYTES], "little")
        self._schema = empty[: 2 * _MARK_BYTES + described]

    def head(self) -> bytes:
        """The schema."""
        return self._schema

    def batch(self, rows: Sequence[Row]) -> bytes:
        """A record batch.

        Raises:
            Problem: an integer has more than 64 bits.
        """
        columns = zip(*map(self._encoder.values, rows), strict=True)
        frame = pl.DataFrame([
            pl.Series(name, shape(values), dtype=kind, strict=True)
            for (name, kind, shape), values in zip(self._series, columns, strict=True)
        ])  # fmt: skip
        return _stream(frame)[len(self._schema) : -len(_END)]

    def tail(self) -> bytes:
        """The end of the stream."""
        return _END


def _stream(frame: pl.DataFrame) -> bytes:
    """A whole stream, with types that old readers know."""
    written = io.BytesIO()
    frame.write_ipc_stream(written, compat_level=pl.CompatLevel.oldest())
    return written.getvalue()


def _as_it_is(kind: str) -> None:
    """Values are typed here, not written as text."""


def _data_type(column: Column) -> Any:
    if column.kind != "array":
        return _TYPES[column.kind]
    if not column.members:
        return pl.List(pl.String)
    return pl.List(pl.Struct({member.name: _data_type(member) for member in column.members}))


def _shaper(column: Column) -> Callable[[Sequence[Any]], Sequence[Any]]:
    """What makes a column's values such as its data type takes."""
    match column.kind:
        case "integer":
            return lambda values: [None if value is None else _integer(column, value) for value in values]
        case "number":
            return lambda values: [None if value is None else float(value) for value in values]
        case "object":
            return lambda values: list(map(_text, values))
        case "array":
            return lambda values: [None if value is None else _items(column, value) for value in values]
        case _:
            return lambda values: values


def _integer(column: Column, value: int | Decimal) -> int:
    if _LEAST <= value <= _GREATEST:
        return int(value)
    raise Problem(
        400,
        "value_too_large",
        f"{column.name}: Arrow's integers have 64 bits, which {int(value)} is beyond; leave the column out with"
        " `metrics`, or ask for JSON, NDJSON or CSV",
    )


def _text(value: Any) -> str | None:
    """Texts are themselves, objects and lists are JSON."""
    return value if value is None or isinstance(value, str) else msgspec.json.encode(value).decode()


def _items(column: Column, items: Sequence[Any]) -> list[Any]:
    if not column.members:
        return list(map(_text, items))
    return [{member.name: _member(member, item[member.name]) for member in column.members} for item in items]


def _member(member: Column, value: Any) -> Any:
    """A member of an object in a list, where times are written as texts."""
    return read_time(value) if member.kind == "timestamp" and isinstance(value, str) else value


FORMAT = Format(
    "Arrow", "arrow", "application/vnd.apache.arrow.stream",
    "An Arrow IPC stream (`pyarrow.ipc.open_stream`, `polars.read_ipc_stream`), uncompressed, in record batches of"
    " at most 2,000 rows. Timestamps are microseconds in UTC, integers have 64 bits, numbers are doubles, lists of"
    " frequent values are lists of structs, objects are texts of JSON. An integer beyond 64 bits, such as a large sum,"
    " is refused with 400 `value_too_large`; where rows were sent before it, the answer breaks off.",
    ArrowWriter,
    schema={"type": "string", "format": "binary"},
)  # fmt: skip
