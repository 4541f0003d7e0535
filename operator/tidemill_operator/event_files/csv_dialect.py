"""Detects a CSV file's delimiter, its header, and the decimal mark of each column."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from tidemill_operator.event_files.numbers import COMMA, NULLS, POINT, find_decimal, read_number

DELIMITERS = (",", ";", "\t", "|")
MAX_COLUMNS = 1000
_SAMPLE_ROWS = 500
_MIN_FITNESS = 0.2
_SEPARATOR_LINE = re.compile(r"sep=([^\r\n\"])\r?\n", re.IGNORECASE)
_INVALID_CHARACTERS = re.compile(r'["\\\x00-\x1f\x7f]+')
_DATE = re.compile(r"\d{1,4}[-./]\d{1,2}[-./]\d{1,4}([T ].*)?", re.ASCII)


@dataclass(frozen=True)
class Dialect:
    """The form of a CSV file.

    Attributes:
        columns: the unique names of the columns, such as `column_1` in a file without header.
        skipped_lines: the number of lines before the first row of data.
    """

    delimiter: str
    columns: tuple[str, ...]
    decimals: tuple[str, ...]
    skipped_lines: int

    @property
    def has_header(self) -> bool:
        """Whether the file has a header."""
        return self.skipped_lines > 0


def find_dialect(text: str, delimiter: str | None = None) -> Dialect:
    """Return the dialect of a CSV file, detected from its first lines.

    Args:
        text: the complete lines at the beginning of the file.
        delimiter: the delimiter that the user has named, or None to detect the delimiter.

    Raises:
        csv.Error: a cell is too long, perhaps because a quote is not closed.
    """
    separator_line = _SEPARATOR_LINE.match(text)
    if separator_line is not None:  # Excel writes `sep=;` above the header
        text, delimiter = text[separator_line.end() :], delimiter or separator_line[1]
    delimiter_used = delimiter or _find_delimiter(text)
    rows = [row for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter_used) if row]
    has_header = _has_header(rows)
    first_row = rows[0] if rows else []
    columns = unique_names(first_row if has_header else [""] * max(map(len, rows[:_SAMPLE_ROWS]), default=0))
    return Dialect(
        delimiter=delimiter_used,
        columns=columns,
        decimals=_decimals(rows[has_header:], len(columns), delimiter_used),
        skipped_lines=has_header + (separator_line is not None),
    )


def unique_names(cells: Sequence[str]) -> tuple[str, ...]:
    """Return a name for each column. Each name is unique and can be used in a path."""
    names: list[str] = []
    for number, cell in enumerate(cells, 1):
        name = _INVALID_CHARACTERS.sub(" ", cell).strip()[:200] or f"column_{number}"
        base, copy = name, 2
        while name in names:
            name, copy = f"{base}_{copy}", copy + 1
        names.append(name)
    return tuple(names)


def _find_delimiter(text: str) -> str:
    fitness = {each: _fitness(text, each) for each in DELIMITERS}
    if max(fitness.values()) > 0:
        return max(DELIMITERS, key=lambda each: fitness[each])
    # The file has one column, so choose the delimiter that occurs least often in its cells.
    return min(DELIMITERS, key=text.count)


def _fitness(text: str, delimiter: str) -> float:
    """Rate how well a delimiter splits a CSV text. A rating of 0 means an unsuitable delimiter."""
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
        rows = [row for row, _ in zip((row for row in reader if row), range(_SAMPLE_ROWS), strict=False)]
    except csv.Error:
        return 0.0
    ((width, row_count),) = Counter(map(len, rows)).most_common(1) or [(1, 0)]
    if width == 1 or width > MAX_COLUMNS or len(rows[0]) == 1:
        return 0.0
    # Some programs write a delimiter at the end of rows, but not of the header. So a header with more or fewer cells
    # than the rows only halves the rating.
    share = row_count / len(rows) * (1.0 if len(rows[0]) == width else 0.5)
    if share < _MIN_FITNESS:
        return 0.0
    cells = [cell for row in rows for cell in row]
    return share * (0.1 + sum(_is_clean(cell, delimiter) for cell in cells) / len(cells))


def _is_clean(cell: str, delimiter: str) -> bool:
    if not any(other in cell for other in DELIMITERS if other != delimiter):
        return True
    return any(read_number(cell, mark) is not None for mark in (POINT, COMMA))


def _has_header(rows: Sequence[Sequence[str]]) -> bool:
    """Return whether the first row looks like column names, and not like the values below it."""
    if not rows:
        return False
    below = rows[1 : 1 + _SAMPLE_ROWS]
    for column, cell in enumerate(rows[0]):
        if not _is_value(cell):
            continue
        values = [row[column] for row in below if column < len(row) and row[column].strip()]
        if not values or sum(map(_is_value, values)) > len(values) / 2:
            return False
    return True


def _is_value(cell: str) -> bool:
    text = cell.strip()
    is_number = any(read_number(text, mark) is not None for mark in (POINT, COMMA))
    return is_number or _DATE.fullmatch(text) is not None


def _decimals(rows: Sequence[Sequence[str]], width: int, delimiter: str) -> tuple[str, ...]:
    """Return the decimal mark of each column. Unclear columns get the file's most common decimal mark."""
    columns = [[row[at].strip() for row in rows if at < len(row)] for at in range(width)]
    marks = [find_decimal(text for text in column if text.lower() not in NULLS) for column in columns]
    votes = Counter(mark for mark in marks if mark is not None)
    if votes[POINT] != votes[COMMA]:
        default = max(votes, key=lambda mark: votes[mark])
    else:
        # Files with semicolons between cells usually have decimal commas.
        default = COMMA if delimiter == ";" and any("," in text for column in columns for text in column) else POINT
    return tuple(mark or default for mark in marks)
