"""`_corrections`: batches that changed closed windows.

A row stands for the windows with this `rev` that start in [first_start, last_start] (epoch ms). They are published and
judged again; then the row is deleted.
"""

from __future__ import annotations

from typing import Literal

from tidemill_contract.tables.definition import Table, columns

Duty = Literal["published", "scanned"]
"""What is done for each; the column that says so."""

TABLE = Table(
    "_corrections",
    columns(
        ("aggregation_id", "integer NOT NULL"),
        ("rev", "bigint NOT NULL"),
        ("first_start", "bigint NOT NULL"),
        ("last_start", "bigint NOT NULL"),
        ("published", "boolean NOT NULL"),
        ("scanned", "boolean NOT NULL"),
    ),
    ("PRIMARY KEY (aggregation_id, rev)",),
    writer="SELECT, INSERT, UPDATE, DELETE",
)


def insert(schema: str) -> str:
    """Parameters: aggregation's id, rev, first and last start (epoch ms), whether published and scanned."""
    return (
        f"INSERT INTO {schema}._corrections"
        " (aggregation_id, rev, first_start, last_start, published, scanned) VALUES (%s, %s, %s, %s, %s, %s)"
    )


def due(schema: str, duty: Duty, limit: int) -> str:
    """The oldest that a duty is not done for. Parameter: aggregation's id.

    Rows: rev, first and last start (epoch ms).
    """
    return (
        f"SELECT rev, first_start, last_start FROM {schema}._corrections WHERE aggregation_id = %s AND NOT {duty}"
        f" ORDER BY rev LIMIT {limit}"
    )


def set_done(schema: str, duty: Duty) -> str:
    """Parameters: aggregation's id, list of revs."""
    return f"UPDATE {schema}._corrections SET {duty} = true WHERE aggregation_id = %s AND rev = ANY(%s)"


def remove_done(schema: str, other: Duty) -> str:
    """Remove those that are done, if the other duty is done as well. Parameters: aggregation's id, list of revs."""
    return f"DELETE FROM {schema}._corrections WHERE aggregation_id = %s AND rev = ANY(%s) AND {other}"
