"""Makes events from the rows of a CSV file, according to the types of a pipeline's fields.

If a cell does not fit its field's type, the cell is sent as text. The event then becomes a dead letter.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from tidemill_contract.events.json_fields import JSON
from tidemill_contract.events.timestamps import RFC3339, UNITS
from tidemill_contract.resource.paths import Steps, show_path
from tidemill_contract.resource.source import FieldSpec
from tidemill_operator.event_files.csv_dialect import Dialect
from tidemill_operator.event_files.numbers import BOOLEANS, NULLS, read_number

CellReader = Callable[[str], Any]
"""A function from a cell to its value for the JSON encoder. The function returns None for a cell without a value."""


class RowWriter:
    """Writes rows as JSON objects.

    Attributes:
        unused_columns: the columns that no field reads.
        unmatched_fields: the fields that no column fills.
    """

    def __init__(self, dialect: Dialect, fields: Sequence[FieldSpec]) -> None:
        """Match each column to the field with the same path or name."""
        value_fields = [field for field in fields if field.origin == "value"]
        # Put json fields first, so that fields of other types replace them in the dicts below.
        value_fields.sort(key=lambda field: field.type != JSON)
        by_path = {show_path(field.steps): field for field in value_fields}
        by_member = {field.steps[0]: field for field in value_fields if len(field.steps) == 1}
        by_name = {field.name: field for field in value_fields}
        self._cells: list[tuple[int, Sequence[Any], CellReader]] = []
        self._width, unused, filled = len(dialect.columns), [], set[Steps]()
        for index, (column, decimal) in enumerate(zip(dialect.columns, dialect.decimals, strict=True)):
            field = by_member.get(column) or by_path.get(column) or by_name.get(column)
            if field is None or field.steps in filled or not all(isinstance(step, str) for step in field.steps):
                unused.append(column)
                continue
            filled.add(field.steps)
            self._cells.append((index, field.steps, _cell_reader(field, decimal)))
        self.unused_columns = tuple(unused)
        self.unmatched_fields = tuple(
            field.name for field in fields if field.origin == "value" and field.steps not in filled
        )
        self._flat = all(len(steps) == 1 for _, steps, _ in self._cells)
        self._flat_cells = [(index, steps[0], read) for index, steps, read in self._cells]

    @property
    def matches_no_field(self) -> bool:
        """Whether no field reads any column of the file."""
        return not self._cells

    def write(self, row: Sequence[str], line: int) -> bytes:
        """Return a row as a JSON object.

        A row with too many cells becomes a JSON string, which ingest stores as a dead letter.
        """
        if len(row) > self._width and any(cell.strip() for cell in row[self._width :]):
            error = f"line {line} has {len(row)} cells, there are {self._width} columns: {row}"
            return msgspec.json.encode(error)
        width = len(row)
        if self._flat:
            return msgspec.json.encode(
                {name: value for i, name, read in self._flat_cells if i < width and (value := read(row[i])) is not None}
            )
        event: dict[str, Any] = {}
        for i, steps, read in self._cells:
            if i < width and (value := read(row[i])) is not None:
                *outer, last = steps
                inner = event
                for step in outer:
                    inner = inner.setdefault(step, {})
                inner[last] = value
        return msgspec.json.encode(event)


def _cell_reader(field: FieldSpec, decimal: str) -> CellReader:
    match field.type:
        case "string":
            return _read_text
        case "boolean":
            return _read_boolean
        case "timestamp":
            return _number_reader(decimal) if _accepts_numbers(field) else _read_time
        case "strings" | "json":
            return _read_json
    return _number_reader(decimal)  # integer and other numeric types


def _accepts_numbers(field: FieldSpec) -> bool:
    return field.format in (None, RFC3339, *UNITS)


def _read_text(cell: str) -> str | None:
    return cell or None


def _read_time(cell: str) -> str | None:
    text = cell.strip()
    return None if text.lower() in NULLS else text


def _read_boolean(cell: str) -> Any:
    text = cell.strip().lower()
    return None if text in NULLS else BOOLEANS.get(text, cell)


def _number_reader(decimal: str) -> CellReader:
    def read(cell: str) -> Any:
        text = cell.strip()
        if text.lower() in NULLS:
            return None
        number = read_number(text, decimal)
        # a float would round numbers with many digits
        return text if number is None else msgspec.Raw(number.encode())

    return read


def _read_json(cell: str) -> Any:
    text = cell.strip()
    if not text:
        return None
    try:
        msgspec.json.decode(text)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return text
    return msgspec.Raw(text.encode())
