"""Converts rows from psycopg to values that a format can write."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from tidemill_api.formats.base import Converters, Row
from tidemill_api.query.selection import Column
from tidemill_api.query.values import kind_converter
from tidemill_contract.decimals import scale_of

log = logging.getLogger(__name__)


def json_converter(column: Column, *, decimals_as_numbers: bool | None = None) -> Callable[[Any], Any] | None:
    """Return the converter of a column's database values for JSON. If no conversion is needed, return None.

    Args:
        column: the column.
        decimals_as_numbers: whether decimals become JSON numbers instead of texts. None means the column's setting.
    """
    decimals_as_numbers = column.decimals_as_numbers if decimals_as_numbers is None else decimals_as_numbers
    decode, convert = column.decode, kind_converter(column.kind, decimals_as_numbers=decimals_as_numbers)
    if column.kind == "array" and decimals_as_numbers and decode is not None:
        convert = _members_converter(column)
    elif scale_of(column.kind) is None:
        return decode or convert
    if decode is None or convert is None:
        return decode or convert
    return lambda value: convert(decode(value))


def _members_converter(column: Column) -> Callable[[Any], Any] | None:
    kinds = {member.name: member.kind for member in column.members if scale_of(member.kind) is not None}
    converters = [(name, kind_converter(kind, decimals_as_numbers=True)) for name, kind in kinds.items()]

    def convert(items: list[dict[str, Any]] | None) -> list[dict[str, Any]] | None:
        if items is None:
            return None
        return [
            {**item, **{name: to_number(item[name]) for name, to_number in converters if to_number is not None}}
            for item in items
        ]

    return convert if converters else None


class RowEncoder:
    """Converts the Python values of psycopg's rows to the values of a format."""

    def __init__(
        self,
        columns: Sequence[Column],
        converters: Converters | None = None,
        *,
        make_converter: Callable[[Column], Callable[[Any], Any] | None] = json_converter,
    ) -> None:
        self.columns = columns
        self.names = [column.name for column in columns]
        column_converters = [(i, (converters or {}).get(c.name) or make_converter(c)) for i, c in enumerate(columns)]
        self._converters = [(index, convert) for index, convert in column_converters if convert is not None]

    def values(self, row: Row) -> list[Any]:
        """Return the converted values of a row. A value that cannot be converted becomes None."""
        values = list(row)
        for index, convert in self._converters:
            try:
                values[index] = convert(values[index])
            except Exception as error:
                # Replace a damaged value with null, so that the other values of the row are still sent.
                log.warning("%s of a row cannot be read: %s: %s", self.names[index], type(error).__name__, error)
                values[index] = None
        return values

    def record(self, row: Row) -> dict[str, Any]:
        """Return a row as an object for JSON."""
        return dict(zip(self.names, self.values(row), strict=True))
