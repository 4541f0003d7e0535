"""The rows of a lookup in memory, with a key and the lookup's fields."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

MAX_ROWS, MAX_BYTES = 1_000_000, 64 * 1024 * 1024
"""The maximum number of rows and bytes of one lookup in memory."""
KEY, DELETED = "?key", "?gone"
_SEMI_JOIN_ROWS = 50_000
_MAX_CHANGES = 10_000
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
        if rows.height > _SEMI_JOIN_ROWS:
            rows = rows.join(keys, on=KEY, how="semi")
        if self.changes is not None:
            changes = self.changes.join(keys, on=KEY, how="semi")
            rows = _apply_changes(rows, changes)
        return frame.join(rows, left_on=on, right_on=KEY, how="left", maintain_order="left")


class TableBuilder:
    """Builds the table of a lookup by applying changes in order."""

    def __init__(self, schema: pl.Schema) -> None:
        """Create an empty table with the columns of `schema`."""
        self._rows = pl.DataFrame(schema=schema)
        self._changes = pl.DataFrame(schema={**schema, DELETED: pl.Boolean()})

    def apply(self, changes: pl.DataFrame) -> None:
        """Apply changes.

        Raises:
            LookupFault: there are too many rows, or they are too large.
        """
        self._changes = pl.concat([self._changes, changes]).unique(KEY, keep="last")
        if self._changes.height >= _MAX_CHANGES:
            self._rows = _apply_changes(self._rows, self._changes).rechunk()
            self._changes = self._changes.clear()
        size = self._rows.estimated_size() + self._changes.estimated_size()
        check_size(self._rows.height + self._changes.height, int(size))

    def snapshot(self) -> Table:
        """Return the current rows."""
        return Table(self._rows, self._changes if self._changes.height else None)


def _apply_changes(rows: pl.DataFrame, changes: pl.DataFrame) -> pl.DataFrame:
    if not changes.height:
        return rows
    kept = rows.join(changes, on=KEY, how="anti")
    return pl.concat([kept, changes.filter(~pl.col(DELETED)).drop(DELETED)])


def check_size(rows: int, size: int) -> None:
    """Raise `LookupFault` if a lookup has too many rows or uses too much memory."""
    if rows > MAX_ROWS:
        remedy = "load fewer rows, for example with a query"
        raise LookupFault(f"has more than {MAX_ROWS:,} rows (the limit of a lookup); {remedy}")
    if size > MAX_BYTES:
        remedy = "load fewer fields or rows"
        raise LookupFault(f"uses more than {MAX_BYTES >> 20} MiB of memory (the limit of a lookup); {remedy}")


def build_table(frames: Sequence[pl.DataFrame]) -> Table:
    """Join frames into a table, without rows whose key is null.

    Raises:
        LookupFault: a key occurs twice.
    """
    rows = pl.concat(frames).filter(pl.col(KEY).is_not_null()).rechunk()
    if rows[KEY].n_unique() != rows.height:
        twice = str(rows.filter(pl.col(KEY).is_duplicated())[KEY][0])[:_SHOWN]
        raise LookupFault(f"the key {twice!r} has several rows; use a key whose values are unique")
    return Table(rows)
