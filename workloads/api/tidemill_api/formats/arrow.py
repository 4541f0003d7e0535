"""Writes Arrow IPC streams with typed columns and record batches."""

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
from tidemill_contract.decimals import base_type, scale_of
from tidemill_contract.times import read_time

_TIME = pl.Datetime("us", "UTC")
_TYPES: dict[str, Any] = {
    "string": pl.String, "integer": pl.Int64, "number": pl.Float64, "boolean": pl.Boolean, "timestamp": _TIME,
    "object": pl.String,
}  # fmt: skip
_MIN_INT64, _MAX_INT64 = -(2**63), 2**63 - 1
_DIGITS = 38
"""Number of digits of Arrow's 128-bit decimals."""
# An Arrow stream is a schema message, record batch messages, and an end mark. The end mark has eight bytes. Each Arrow
# message begins with four bytes 0xff and the length of its metadata.
_MARK_BYTES = 4
_END = b"\xff\xff\xff\xff\0\0\0\0"


class ArrowWriter:
    """Writes one Arrow stream: the schema, the record batches, and the end mark."""

    def __init__(self, columns: Sequence[Column], converters: Converters | None = None) -> None:
        self.columns = columns
        self._encoder = RowEncoder(columns, converters, make_converter=_decoder)
        self._series = [(column.name, _data_type(column), _series_converter(column)) for column in columns]
        empty = _ipc_stream(pl.DataFrame(schema={name: kind for name, kind, _ in self._series}))
        metadata_bytes = int.from_bytes(empty[_MARK_BYTES : 2 * _MARK_BYTES], "little")
        self._schema = empty[: 2 * _MARK_BYTES + metadata_bytes]

    def head(self) -> bytes:
        """Return the schema message of the stream."""
        return self._schema

    def batch(self, rows: Sequence[Row]) -> bytes:
        """Return a record batch with the given rows.

        Raises:
            Problem: an integer has more than 64 bits, or a decimal more than 38 digits.
        """
        columns = zip(*map(self._encoder.values, rows), strict=True)
        frame = pl.DataFrame([
            pl.Series(name, convert(values), dtype=kind, strict=True)
            for (name, kind, convert), values in zip(self._series, columns, strict=True)
        ])  # fmt: skip
        return _ipc_stream(frame)[len(self._schema) : -len(_END)]

    def tail(self) -> bytes:
        """Return the end mark of the stream."""
        return _END


def _ipc_stream(frame: pl.DataFrame) -> bytes:
    buffer = io.BytesIO()
    frame.write_ipc_stream(buffer, compat_level=pl.CompatLevel.oldest())
    return buffer.getvalue()


def _decoder(column: Column) -> Callable[[Any], Any] | None:
    return column.decode


def _data_type(column: Column) -> Any:
    scale = scale_of(column.kind)
    if scale is not None:
        return pl.Decimal(_DIGITS, scale)
    if column.kind != "array":
        return _TYPES[column.kind]
    if not column.members:
        return pl.List(pl.String)
    return pl.List(pl.Struct({member.name: _data_type(member) for member in column.members}))


def _series_converter(column: Column) -> Callable[[Sequence[Any]], Sequence[Any]]:
    match base_type(column.kind):
        case "decimal":
            return lambda values: [None if value is None else _decimal(column, value) for value in values]
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
    if _MIN_INT64 <= value <= _MAX_INT64:
        return int(value)
    raise _too_large(column, f"{int(value)} does not fit Arrow's integers of 64 bits")


def _decimal(column: Column, value: Any) -> Decimal:
    number, scale = Decimal(value), scale_of(column.kind) or 0
    if not number or number.adjusted() < _DIGITS - scale:
        return number
    raise _too_large(column, f"{number:f} does not fit Arrow's decimals of {_DIGITS} digits")


def _too_large(column: Column, reason: str) -> Problem:
    remedy = "leave the column out of `metrics`, or ask for JSON, NDJSON or CSV"
    return Problem(400, "value_too_large", f"{column.name}: {reason}; {remedy}")


def _text(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else msgspec.json.encode(value).decode()


def _items(column: Column, items: Sequence[Any]) -> list[Any]:
    if not column.members:
        return list(map(_text, items))
    return [{member.name: _member(member, item[member.name]) for member in column.members} for item in items]


def _member(member: Column, value: Any) -> Any:
    if scale_of(member.kind) is not None:
        return _decimal(member, value)
    return read_time(value) if member.kind == "timestamp" and isinstance(value, str) else value


FORMAT = Format(
    "Arrow", "arrow", "application/vnd.apache.arrow.stream",
    "An uncompressed Arrow IPC stream (`pyarrow.ipc.open_stream`, `polars.read_ipc_stream`). Record batches have at"
    " most 2,000 rows. Timestamps are microseconds in UTC, and numbers are doubles. Integers have 64 bits, and decimals"
    " have 38 digits. A longer integer or decimal causes the status 400 `value_too_large`. If the answer has already"
    " begun, the stream ends without an end mark. Frequent values are written as lists of structs, and objects as"
    " JSON texts.",
    ArrowWriter,
    schema={"type": "string", "format": "binary"},
)  # fmt: skip
