"""The rows of a lookup in memory, with a key and the lookup's fields."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

MOST_ROWS, MOST_BYTES = 1_000_000, 64 * 1024 * 1024
"""The maximum number of rows and bytes of one lookup in memory."""
KEY, GONE = "?key", "?gone"
_LARGE = 50_000
_CHANGES = 10_000
_SHOWN = 60


class LookupFault(Exception):
    """Raised if a lookup cannot be read. The message says what is wrong and what to do."""


@dataclass(frozen=True)
class Table:
    """The rows of a lookup at one point in time.

    Attributes:
        rows: a frame with the fields and the key, which is unique and not null.
        changes: later changes to the rows, with a column `?gone` that is true for a deleted row.
    """

    rows: pl.DataFrame
    changes: pl.DataFrame | None = None

    @property
    def height(self) -> int:
        """The number of rows and changes."""
        return self.rows.height + (0 if self.changes is None else self.changes.height)

    def join(self, frame: pl.DataFrame, on: str) -> pl.DataFrame:
        """Add the lookup's fields to each event, with null in events without a matching row."""
        keys = frame.select(pl.col(on).alias(KEY)).unique()
        rows = self.rows
        if rows.height > _LARGE:
            rows = rows.join(keys, on=KEY, how="semi")
        if self.changes is not None:
            changes = self.changes.join(keys, on=KEY, how="semi")
            rows = _applied(rows, changes)
        return frame.join(rows, left_on=on, right_on=KEY, how="left", maintain_order="left")


class Contents:
    """The rows of a lookup, kept up to date by applying changes in order."""

    def __init__(self, schema: pl.Schema) -> None:
        """Create an empty table with the columns of `schema`."""
        self._rows = pl.DataFrame(schema=schema)
        self._changes = pl.DataFrame(schema={**schema, GONE: pl.Boolean()})

    def apply(self, changes: pl.DataFrame) -> None:
        """Apply changes.

        Raises:
            LookupFault: there are too many rows, or they are too large.
        """
        self._changes = pl.concat([self._changes, changes]).unique(KEY, keep="last")
        if self._changes.height >= _CHANGES:
            self._rows = _applied(self._rows, self._changes).rechunk()
            self._changes = self._changes.clear()
        size = self._rows.estimated_size() + self._changes.estimated_size()
        check_size(self._rows.height + self._changes.height, int(size))

    def table(self) -> Table:
        """Return the current rows."""
        return Table(self._rows, self._changes if self._changes.height else None)


def _applied(rows: pl.DataFrame, changes: pl.DataFrame) -> pl.DataFrame:
    if not changes.height:
        return rows
    kept = rows.join(changes, on=KEY, how="anti")
    return pl.concat([kept, changes.filter(~pl.col(GONE)).drop(GONE)])


def check_size(rows: int, size: int) -> None:
    """Raise `LookupFault` if a lookup has too many rows or uses too much memory."""
    if rows > MOST_ROWS:
        remedy = "load fewer rows, for example with a query"
        raise LookupFault(f"has more than {MOST_ROWS:,} rows (the limit of a lookup); {remedy}")
    if size > MOST_BYTES:
        remedy = "load fewer fields or rows"
        raise LookupFault(f"uses more than {MOST_BYTES >> 20} MiB of memory (the limit of a lookup); {remedy}")


def table_of(frames: Sequence[pl.DataFrame]) -> Table:
    """Join frames into a table, without rows whose key is null.

    Raises:
        LookupFault: a key occurs twice.
    """
    rows = pl.concat(frames).filter(pl.col(KEY).is_not_null()).rechunk()
    if rows[KEY].n_unique() != rows.height:
        twice = str(rows.filter(pl.col(KEY).is_duplicated())[KEY][0])[:_SHOWN]
        raise LookupFault(f"the key {twice!r} has several rows; use a key whose values are unique")
    return Table(rows)
