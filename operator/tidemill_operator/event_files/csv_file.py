"""Reads CSV files: rows as lists of texts, each with the line that it begins in."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator

from tidemill_operator.event_files.content import Content, EventFileError
from tidemill_operator.event_files.csv_dialect import Dialect, find_dialect

_MOST_CELL = 1024 * 1024
"""The maximum length of a cell. It is the same as the maximum length of an event."""


class CsvFile:
    """A CSV file.

    Attributes:
        dialect: how the file is written.
        encoding: the encoding of its text.
    """

    def __init__(self, content: Content, *, encoding: str | None = None, delimiter: str | None = None) -> None:
        """Detect the dialect. The encoding and the delimiter are detected only if they are None.

        Raises:
            EventFileError: the file is not a CSV file, or has no column.
        """
        self._content = content
        self.encoding = content.known_encoding(encoding)
        csv.field_size_limit(_MOST_CELL)
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
        reader = csv.reader(text, delimiter=self.dialect.delimiter)
        line, skipped = 1, 0
        try:
            for row in reader:
                if row:
                    skipped += 1
                    if skipped > self.dialect.skipped:
                        yield line, row
                line = reader.line_num + 1
        except UnicodeDecodeError as error:
            name, byte = self._content.name, error.object[error.start]
            remedy = "write --encoding cp1252 if it is from Windows" if self.encoding == "utf-8" else "check the file"
            problem = f"byte {byte:#04x} is not {self.encoding}"
            raise EventFileError(f"{name}, near line {line}: {problem}; {remedy}") from None
        except csv.Error as error:
            remedy = "check that the quotes of this line are closed"
            raise EventFileError(f"{self._content.name}, line {line}: {error}; {remedy}") from None
        finally:
            text.detach()

    def _head(self) -> str:
        """Return the whole lines at the beginning of the file, as a text."""
        head = self._content.head
        text = head.decode(self.encoding, errors="replace")
        whole = max(text.rfind("\n"), text.rfind("\r"))
        cut = self._content.is_longer_than_head and whole > 0
        return (text[: whole + 1] if cut else text).removeprefix("\ufeff")
