"""Reads Parquet files in parts, so that a file of any size fits into memory."""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import polars as pl

from tidemill_operator.event_files.content import EventFileError

_CHUNK_ROWS = 10_000
_READ_ERRORS = (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError, ValueError, OverflowError)
"""The errors of polars for unreadable files and values."""
_encode = msgspec.json.Encoder(decimal_format="number").encode


class ParquetFile:
    """A Parquet file."""

    def __init__(self, path: Path) -> None:
        """Read the schema of the file.

        Raises:
            EventFileError: the file is not a Parquet file.
        """
        self._path = path
        try:
            self._frame = pl.scan_parquet(path)
            self.columns = tuple(self._frame.collect_schema().names())
            self.row_count = int(self._frame.select(pl.len()).collect().item())
        except _READ_ERRORS as error:
            raise self._unreadable(error) from None

    def rows(self, skip: int = 0) -> Iterator[tuple[int, Mapping[str, Any]]]:
        """Yield the rows after the first `skip` rows, with their numbers.

        Raises:
            EventFileError: the file is damaged.
        """
        for start in range(skip, self.row_count, _CHUNK_ROWS):
            rows, number = self._read_chunk(start).iter_rows(named=True), start
            try:
                for number, row in enumerate(rows, start + 1):
                    yield number, row
            except _READ_ERRORS as error:  # e.g. a timestamp outside the years 1 to 9999, which Python cannot represent
                raise self._unreadable(error, f", row {number + 1:,}") from None

    def _read_chunk(self, start: int) -> pl.DataFrame:
        try:
            return self._frame.slice(start, _CHUNK_ROWS).collect()
        except _READ_ERRORS as error:
            raise self._unreadable(error) from None

    def lines(self, skip: int = 0, local_columns: Collection[str] = ()) -> Iterator[tuple[int, bytes]]:
        """Yield the rows as JSON, each with its number.

        Args:
            skip: number of rows to skip.
            local_columns: columns in which times may have no zone. In other columns, times without a zone get UTC.
        """
        for number, row in self.rows(skip):
            yield number, _encode({name: _with_utc(value, name in local_columns) for name, value in row.items()})

    def _unreadable(self, error: BaseException, position: str = "") -> EventFileError:
        reason = str(error).partition("\n")[0]
        return EventFileError(
            f"{self._path}{position}: cannot be read as Parquet ({reason}); check the path and the file"
        )


def _with_utc(value: Any, keep_local: bool) -> Any:
    if isinstance(value, dt.datetime) and value.tzinfo is None and not keep_local:
        return value.replace(tzinfo=dt.UTC)
    return value
