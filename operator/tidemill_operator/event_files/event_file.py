"""A file of events in any of the formats."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from tidemill_contract.events.members import JSON_ERRORS
from tidemill_contract.resource.source import FieldSpec
from tidemill_operator.event_files.cells import RowWriter
from tidemill_operator.event_files.content import Content, EventFileError
from tidemill_operator.event_files.csv_file import CsvFile
from tidemill_operator.event_files.json_files import JsonFile, NdjsonFile
from tidemill_operator.event_files.numbers import COMMA

if TYPE_CHECKING:
    from tidemill_operator.event_files.parquet_file import ParquetFile

T = TypeVar("T")

CSV, NDJSON, JSON, PARQUET = "csv", "ndjson", "json", "parquet"
FORMATS = (CSV, NDJSON, JSON, PARQUET)
_SUFFIXES = {
    ".csv": CSV, ".tsv": CSV, ".tab": CSV, ".ndjson": NDJSON, ".jsonl": NDJSON, ".jsonlines": NDJSON,
    ".parquet": PARQUET, ".pq": PARQUET,
}  # fmt: skip
_PARQUET = b"PAR1"
_ENCODINGS = {"utf-8": "UTF-8", "utf-8-sig": "UTF-8 with a byte order mark"}
_decode = msgspec.json.Decoder().decode


@dataclass(frozen=True)
class ReadOptions:
    """Options for reading a file. Each option that is None is detected from the file."""

    format: str | None = None
    encoding: str | None = None
    delimiter: str | None = None


@dataclass(frozen=True)
class Event:
    """An event as one line of JSON, with its line or event number in the file."""

    line: int
    data: bytes


class EventFile:
    """An open file of events."""

    def __init__(self, path: Path | None, options: ReadOptions = ReadOptions()) -> None:
        """Open a file, or the standard input if `path` is None.

        Raises:
            EventFileError: the file cannot be read, or has none of the formats.
        """
        self._content = Content(path)
        self.name = self._content.name
        self.table: CsvFile | None = None
        self._parquet: ParquetFile | None = None
        self._json: NdjsonFile | JsonFile | None = None
        try:
            self.format = options.format or _detect_format(self._content, options.encoding)
            self._open(path, options)
        except BaseException:
            self._content.close()
            raise

    def _open(self, path: Path | None, options: ReadOptions) -> None:
        match self.format:
            case "csv":
                self.table = CsvFile(self._content, encoding=options.encoding, delimiter=options.delimiter)
            case "parquet":
                if path is None:
                    raise EventFileError("Parquet cannot be read from standard input; write it to a file first")
                # importing polars is slow
                from tidemill_operator.event_files.parquet_file import ParquetFile

                self._parquet = ParquetFile(path)
            case "json":
                self._json = JsonFile(self._content, encoding=options.encoding)
            case _:
                self._json = NdjsonFile(self._content, encoding=options.encoding)

    def __enter__(self) -> EventFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._content.close()

    @property
    def fraction_read(self) -> float | None:
        """The share of the file already read, from 0 to 1, or None if unknown."""
        return None if self._parquet is not None else self._content.fraction_read

    @property
    def description(self) -> str:
        """A readable description of the file's format."""
        if self.table is not None:
            dialect = self.table.dialect
            names = {"\t": "tab", " ": "blank"}
            comma = ", decimal comma" if COMMA in dialect.decimals and dialect.delimiter != COMMA else ""
            header = "" if dialect.has_header else ", without a header"
            delimiter = names.get(dialect.delimiter, f'"{dialect.delimiter}"')
            return (
                f"CSV, delimiter {delimiter}, {_ENCODINGS.get(self.table.encoding, self.table.encoding)}{comma}{header}"
            )
        return {NDJSON: "NDJSON", JSON: "a JSON array", PARQUET: "Parquet"}[self.format]

    @property
    def event_label(self) -> str:
        """What an event is called in a file of this format: `line`, `row` or `item`."""
        return "row" if self.format == PARQUET else "item" if self.format == JSON else "line"

    @property
    def warnings(self) -> Sequence[str]:
        """Warnings about the events that were read."""
        return self.table.warnings if self.table is not None else ()

    @property
    def incomplete_line(self) -> int | None:
        """The number of the incomplete last line that `events` left out, or None."""
        return self._json.incomplete_line if isinstance(self._json, NdjsonFile) else None

    def numbered_values(self) -> Iterator[tuple[int, Any]]:
        """Yield each event's position and value. A line that is not JSON has the value None.

        Raises:
            EventFileError: the file cannot be read to its end.
        """
        return self._translate_errors(self._numbered_values())

    def events(self, fields: Sequence[FieldSpec], skip: int = 0, *, growing: bool = False) -> Iterator[Event]:
        """Yield each event after the first `skip` events, as JSON on one line.

        With `growing`, an incomplete last line of NDJSON is left out. Another program may still complete the line.

        Raises:
            EventFileError: the file cannot be read to its end.
        """
        return self._translate_errors(self._events(fields, skip, growing))

    def _translate_errors(self, events: Iterator[T]) -> Iterator[T]:
        try:
            yield from events
        except (OSError, EOFError, zlib.error) as error:
            reason = getattr(error, "strerror", None) or str(error)
            remedy = "check that the file is complete; events before this place were read"
            raise EventFileError(f"{self.name}: cannot be read to its end ({reason}); {remedy}") from None
        except UnicodeEncodeError as error:
            remedy = "the file holds half a surrogate pair; correct the file, or check --encoding"
            raise EventFileError(f"{self.name}: cannot be written as UTF-8 ({error.reason}); {remedy}") from None

    def _numbered_values(self) -> Iterator[tuple[int, Any]]:
        if self.table is not None:
            columns = self.table.columns
            for line, row in self.table.rows():
                yield line, dict(zip(columns, row, strict=False))
        elif self._parquet is not None:
            yield from self._parquet.rows()
        elif self._json is not None:
            for line, data in self._json.lines():
                yield line, decode_or_none(data)

    def _events(self, fields: Sequence[FieldSpec], skip: int, growing: bool) -> Iterator[Event]:
        if self.table is not None:
            writer = self.writer(fields)
            for line, row in itertools.islice(self.table.rows(), skip, None):
                yield Event(line, writer.write(row, line))
        elif self._parquet is not None:
            local_columns = {field.steps[0] for field in fields if field.zone is not None and len(field.steps) == 1}
            for line, data in self._parquet.lines(skip, {str(name) for name in local_columns}):
                yield Event(line, data)
        elif self._json is not None:
            lines = self._json.lines(growing=growing) if isinstance(self._json, NdjsonFile) else self._json.lines()
            for line, data in itertools.islice(lines, skip, None):
                yield Event(line, data)

    def writer(self, fields: Sequence[FieldSpec]) -> RowWriter:
        """Return the RowWriter that converts CSV rows to JSON events.

        Raises:
            EventFileError: no field reads any column of the file.
        """
        assert self.table is not None  # noqa: S101 - the caller has checked it
        writer = RowWriter(self.table.dialect, fields)
        if writer.matches_no_field:
            columns, names = ", ".join(self.table.columns[:12]), ", ".join(field.name for field in fields[:12])
            remedy = "name another pipeline, or correct the fields' paths"
            raise EventFileError(
                f"{self.name}: no field reads any of its columns {columns} (fields: {names}); {remedy}"
            )
        return writer


def _detect_format(content: Content, encoding: str | None) -> str:
    """Return the format of a file, found from the beginning and the name of the file.

    Raises:
        EventFileError: the file is not text.
    """
    if content.head.startswith(_PARQUET):
        return PARQUET
    suffixes = [suffix.lower() for suffix in content.path.suffixes] if content.path is not None else []
    for suffix in suffixes:
        if suffix in _SUFFIXES:
            return _SUFFIXES[suffix]
    text = content.head.decode(content.resolve_encoding(encoding), errors="replace")
    start = text.removeprefix("\ufeff").lstrip()
    if start.startswith("["):
        return JSON
    if not start.startswith("{"):
        return CSV
    # a .json file may hold a single object that spans many lines
    return (
        NDJSON
        if decode_or_none(start.partition("\n")[0].encode(errors="replace")) is not None or ".json" not in suffixes
        else JSON
    )


def decode_or_none(data: bytes) -> Any:
    """Return the value of a JSON text, or None if the bytes are not JSON."""
    try:
        return _decode(data)
    except JSON_ERRORS:
        return None
