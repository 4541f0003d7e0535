"""Reads CSV files as rows of texts."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence

from tidemill_operator.event_files.content import Content, EventFileError, decoding_error
from tidemill_operator.event_files.csv_dialect import Dialect, find_dialect

_MANY_LINES, _MAX_WARNINGS = 50, 10
_MAX_CELL = 1024 * 1024
"""Maximum length of a cell, the same as the maximum length of an event."""


class _QuoteTracker:
    """Yields the lines of a text, and finds out whether the last row ends within quotes."""

    def __init__(self, text: Iterator[str]) -> None:
        self._text, self._quotes = text, 0
        self.unclosed_line: int | None = None

    def __iter__(self) -> Iterator[str]:
        for line in self._text:
            self._quotes += line.count('"')
            yield line

    def end_row(self, row: Sequence[str], line: int) -> None:
        # If a quote is not closed, the last cell contains the line's end. An odd number of quotes can also come from
        # a valid cell such as 3".
        is_open = self._quotes % 2 == 1 and bool(row) and row[-1].endswith(("\n", "\r"))
        self.unclosed_line, self._quotes = line if is_open else None, 0


class CsvFile:
    """A CSV file.

    Attributes:
        warnings: what may be wrong with the rows that were read, such as a quote that is not closed.
    """

    def __init__(self, content: Content, *, encoding: str | None = None, delimiter: str | None = None) -> None:
        """Open a CSV file, and detect `encoding` and `delimiter` if they are None.

        Raises:
            EventFileError: the file is not a CSV file, or has no column.
        """
        self._content = content
        self.encoding = content.resolve_encoding(encoding)
        self.warnings: list[str] = []
        csv.field_size_limit(_MAX_CELL)
        try:
            self.dialect: Dialect = find_dialect(self._head(), delimiter)
        except csv.Error as error:
            raise EventFileError(f"{content.name}: {error}; check that each quote is closed") from None

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the columns."""
        return self.dialect.columns

    def rows(self) -> Iterator[tuple[int, list[str]]]:
        """Yield the rows that are not blank, each with the number of its first line.

        Raises:
            EventFileError: a line cannot be decoded, or a quote is not closed.
        """
        text = io.TextIOWrapper(self._content.stream, self.encoding, newline="")
        tracker = _QuoteTracker(text)
        reader = csv.reader(tracker, delimiter=self.dialect.delimiter)
        line, row_number = 1, 0
        self.warnings.clear()
        try:
            for row in reader:
                if reader.line_num - line >= _MANY_LINES and len(self.warnings) < _MAX_WARNINGS:
                    self.warnings.append(
                        f"the row in line {line} has {reader.line_num - line + 1:,} lines: check its quotes"
                    )
                if row:
                    row_number += 1
                    if row_number > self.dialect.skipped_lines:
                        yield line, row
                tracker.end_row(row, line)
                line = reader.line_num + 1
            if tracker.unclosed_line is not None:
                self.warnings.append(
                    f"the file ends within the quotes of the row in line {tracker.unclosed_line}: close them"
                )
        except UnicodeDecodeError as error:
            name, byte = self._content.name, error.object[error.start]
            remedy = "write --encoding cp1252 for a file from Windows" if self.encoding == "utf-8" else "check the file"
            problem = f"byte {byte:#04x} is not {self.encoding}"
            raise EventFileError(f"{name}, near line {line}: {problem}; {remedy}") from None
        except UnicodeError as error:
            raise decoding_error(f"{self._content.name}, near line {line}", self.encoding, error) from None
        except csv.Error as error:
            remedy = "check that the quotes of this line are closed"
            raise EventFileError(f"{self._content.name}, line {line}: {error}; {remedy}") from None
        finally:
            text.detach()

    def _head(self) -> str:
        """Return the complete lines at the beginning of the file as a text."""
        head = self._content.head
        text = head.decode(self.encoding, errors="replace")
        end = max(text.rfind("\n"), text.rfind("\r"))
        is_cut = self._content.is_longer_than_head and end > 0
        return (text[: end + 1] if is_cut else text).removeprefix("\ufeff")
