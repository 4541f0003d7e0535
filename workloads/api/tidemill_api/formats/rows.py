"""Converts rows of psycopg to values that a format can write."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from tidemill_api.formats.base import Converters, Row
from tidemill_api.query.selection import Column
from tidemill_api.query.values import encoder

log = logging.getLogger(__name__)


class RowEncoder:
    """Converts rows of psycopg to the values of answers.

    Args:
        columns: the columns, in the order of the rows' values.
        converters: converters by column name. They replace the default converters.
        of_kind: returns the default converter of a type; None: values of this type stay unchanged.
    """

    def __init__(
        self,
        columns: Sequence[Column],
        converters: Converters | None = None,
        *,
        of_kind: Callable[[str], Callable[[Any], Any] | None] = encoder,
    ) -> None:
        self.columns = columns
        self.names = [column.name for column in columns]
        found = [(i, (converters or {}).get(c.name) or c.decode or of_kind(c.kind)) for i, c in enumerate(columns)]
        self._converters = [(index, convert) for index, convert in found if convert is not None]

    def values(self, row: Row) -> list[Any]:
        """Return the converted values of a row. A value that cannot be converted is null."""
        values = list(row)
        for index, convert in self._converters:
            try:
                values[index] = convert(values[index])
            except Exception as error:
                # One damaged value, such as a sketch, must not prevent the answer.
                log.warning("%s of a row cannot be read: %s: %s", self.names[index], type(error).__name__, error)
                values[index] = None
        return values

    def record(self, row: Row) -> dict[str, Any]:
        """Return a row as an object for JSON."""
        return dict(zip(self.names, self.values(row), strict=True))
