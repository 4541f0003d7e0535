"""Read records in CSV. Each record is one line, and the spec names the columns."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence

import msgspec

from tidemill_contract.events.event_errors import show_bytes
from tidemill_contract.events.fields import with_fields
from tidemill_contract.events.formats.opener import Content, DeletePolicy, Opener
from tidemill_contract.events.formats.texts import as_json
from tidemill_contract.events.invalid_events import InvalidEvent, Reason
from tidemill_contract.resource.source import FieldSpec
from tidemill_contract.resource.spec import PipelineSpec

_BOM = "\ufeff"
_encode = msgspec.json.encode


def without_paths(spec: PipelineSpec) -> PipelineSpec:
    """Return a copy of the spec in which no field has a path, for events from `CsvLines`."""
    fields = [
        field.model_copy(update={"path": None}) if field.origin == "value" else field for field in spec.source.fields
    ]
    return with_fields(spec, fields, strict=False)


class CsvLines(Opener):
    """Converts each line of CSV to a JSON object, and leaves out fields whose cells are empty."""

    def __init__(self, spec: PipelineSpec) -> None:
        record_format = spec.source.record_format
        super().__init__(DeletePolicy(record_format.deletes))
        by_column: dict[str, list[FieldSpec]] = {}
        for field in spec.source.fields:
            if field.origin == "value":
                by_column.setdefault(str(field.member_path[0]), []).append(field)
        self.columns = tuple(record_format.columns or by_column)
        self._column_fields = [
            [(b'"%b":' % field.name.encode(), field) for field in by_column.get(name, ())] for name in self.columns
        ]
        self.delimiter = record_format.delimiter

    def open_together(self, raws: Sequence[bytes]) -> tuple[list[bytes], Sequence[bytes]]:
        """Convert many lines to JSON events. If the lines must be read one by one, return empty lists."""
        try:
            rows = self._rows([raw.decode().removeprefix(_BOM) for raw in raws])
            # If a quote spans lines, the CSV reader joins several records into one row.
            if len(rows) != len(raws) or not all(len(row) == len(self._column_fields) for row in rows):
                return [], []
            documents = list(map(self.document, rows))
        except (csv.Error, UnicodeDecodeError, InvalidEvent):
            return [], []
        return documents, documents

    def open_one(self, raw: bytes) -> Content:
        """Convert one line to a JSON event, or raise InvalidEvent."""
        try:
            text = raw.decode().removeprefix(_BOM)
            # `splitlines` would also split at characters that a cell may contain, such as U+2028.
            rows = self._rows(io.StringIO(text, newline=""))
        except UnicodeDecodeError as error:
            detail = f"is not UTF-8 ({error}); send CSV in UTF-8"
            raise InvalidEvent(Reason.UNREADABLE, None, detail) from None
        except csv.Error as error:
            detail = f"is not CSV ({error}): {show_bytes(raw)}; send one line per record, and close all quotes"
            raise InvalidEvent(Reason.UNREADABLE, None, detail) from None
        if len(rows) != 1:
            received = "an empty line" if not rows else f"{len(rows)} lines"
            raise InvalidEvent(
                Reason.UNREADABLE, None, f"expected one line of CSV, got {received}; send one line per record"
            )
        (row,) = rows
        if len(row) != len(self._column_fields):
            columns = show_bytes(self.delimiter.join(self.columns).encode())
            detail = f"expected {len(self._column_fields)} cells ({columns}), got {len(row)}: {show_bytes(raw)}"
            remedy = "correct the line, source.format.delimiter or source.format.columns"
            raise InvalidEvent(Reason.UNREADABLE, None, f"{detail}; {remedy}")
        document = self.document(row)
        return Content(document, document)

    def _rows(self, lines: Iterable[str]) -> list[list[str]]:
        return list(csv.reader(lines, delimiter=self.delimiter, strict=True))

    def document(self, row: Sequence[str]) -> bytes:
        """Convert the cells of one line to a JSON event, or raise InvalidEvent."""
        members = [
            prefix + (_encode(cell) if field.type == "string" else _json_value(cell, field))
            for cell, fields in zip(row, self._column_fields, strict=True)
            if cell
            for prefix, field in fields
        ]
        return b"{" + b",".join(members) + b"}"


def _json_value(cell: str, field: FieldSpec) -> bytes:
    text = cell.strip()
    return as_json(text.encode(), field) if text else b"null"
