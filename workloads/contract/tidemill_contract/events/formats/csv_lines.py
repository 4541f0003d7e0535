"""Read records in CSV. Each record is one line, and the spec names the columns."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence

import msgspec

from tidemill_contract.events.details import shown
from tidemill_contract.events.fields import with_fields
from tidemill_contract.events.formats.opening import Content, Deletes, Opener
from tidemill_contract.events.formats.texts import as_json
from tidemill_contract.events.verdicts import InvalidEvent, Reason
from tidemill_contract.resource.source import FieldSpec
from tidemill_contract.resource.spec import PipelineSpec

_BOM = "\ufeff"
_encode = msgspec.json.encode


def flat(spec: PipelineSpec) -> PipelineSpec:
    """Return a copy of the spec in which no field has a path, for events from `CsvLines`."""
    fields = [
        field.model_copy(update={"path": None}) if field.origin == "value" else field for field in spec.source.fields
    ]
    return with_fields(spec, fields, strict=False)


class CsvLines(Opener):
    """Converts each line of CSV to a JSON object, and leaves out fields whose cells are empty."""

    def __init__(self, spec: PipelineSpec) -> None:
        written = spec.source.written
        super().__init__(Deletes(written.deletes))
        by_column: dict[str, list[FieldSpec]] = {}
        for field in spec.source.fields:
            if field.origin == "value":
                by_column.setdefault(str(field.member[0]), []).append(field)
        self.columns = tuple(written.columns or by_column)
        self._cells = [
            [(b'"%b":' % field.name.encode(), field) for field in by_column.get(name, ())] for name in self.columns
        ]
        self.delimiter = written.delimiter

    def together(self, raws: Sequence[bytes]) -> tuple[list[bytes], Sequence[bytes]]:
        """Convert many lines to JSON events. If the lines must be read one by one, return empty lists."""
        try:
            rows = self._rows([raw.decode().removeprefix(_BOM) for raw in raws])
            # If a quote spans lines, the CSV reader joins several records into one row.
            if len(rows) != len(raws) or not all(len(row) == len(self._cells) for row in rows):
                return [], []
            documents = list(map(self.document, rows))
        except (csv.Error, UnicodeDecodeError, InvalidEvent):
            return [], []
        return documents, documents

    def single(self, raw: bytes) -> Content:
        """Convert one line to a JSON event, or raise InvalidEvent."""
        try:
            text = raw.decode().removeprefix(_BOM)
            # `splitlines` would also split at characters that a cell may contain, such as U+2028.
            rows = self._rows(io.StringIO(text, newline=""))
        except UnicodeDecodeError as error:
            detail = f"is not UTF-8 ({error}); send CSV in UTF-8"
            raise InvalidEvent(Reason.UNREADABLE, None, detail) from None
        except csv.Error as error:
            detail = f"is not CSV ({error}): {shown(raw)}; send one line per record, and close all quotes"
            raise InvalidEvent(Reason.UNREADABLE, None, detail) from None
        if len(rows) != 1:
            came = "an empty line" if not rows else f"{len(rows)} lines"
            raise InvalidEvent(
                Reason.UNREADABLE, None, f"expected one line of CSV, got {came}; send one line per record"
            )
        (row,) = rows
        if len(row) != len(self._cells):
            columns = shown(self.delimiter.join(self.columns).encode())
            detail = f"expected {len(self._cells)} cells ({columns}), got {len(row)}: {shown(raw)}"
            remedy = "correct the line, source.format.delimiter or source.format.columns"
            raise InvalidEvent(Reason.UNREADABLE, None, f"{detail}; {remedy}")
        document = self.document(row)
        return Content(document, document)

    def _rows(self, lines: Iterable[str]) -> list[list[str]]:
        return list(csv.reader(lines, delimiter=self.delimiter, strict=True))

    def document(self, row: Sequence[str]) -> bytes:
        """Convert the cells of one line to a JSON event, or raise InvalidEvent."""
        members = [
            prefix + (_encode(cell) if field.type == "string" else _value(cell, field))
            for cell, fields in zip(row, self._cells, strict=True)
            if cell
            for prefix, field in fields
        ]
        return b"{" + b",".join(members) + b"}"


def _value(cell: str, field: FieldSpec) -> bytes:
    text = cell.strip()
    return as_json(text.encode(), field) if text else b"null"
