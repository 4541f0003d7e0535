"""`_corrections`: ranges of closed windows that late events changed.

If the pipeline publishes results, each range is published again. If detectors watch the aggregation, they judge the
range again.
"""

from __future__ import annotations

from typing import Literal

from tidemill_contract.tables.definition import Table, columns

DoneColumn = Literal["published", "scanned"]
"""`published` is true if a correction is published, or need not be published. `scanned` is true if detectors have
judged the windows, or if no detector watches them."""

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
    writer_privileges="SELECT, INSERT, UPDATE, DELETE",
)


def insert(schema: str) -> str:
    """Store a correction.

    Parameters: aggregation's id, rev, first and last start (epoch ms), `published`, `scanned`.
    """
    return (
        f"INSERT INTO {schema}._corrections"
        " (aggregation_id, rev, first_start, last_start, published, scanned) VALUES (%s, %s, %s, %s, %s, %s)"
    )


def pending(schema: str, column: DoneColumn, limit: int) -> str:
    """Select the oldest corrections with the value false in `column`.

    Parameter: aggregation's id. Columns: rev, first and last start (epoch ms).
    """
    return (
        f"SELECT rev, first_start, last_start FROM {schema}._corrections WHERE aggregation_id = %s AND NOT {column}"
        f" ORDER BY rev LIMIT {limit}"
    )


def set_done(schema: str, column: DoneColumn) -> str:
    """Set `column` to true in each given correction.

    Parameters: aggregation's id, list of revs.
    """
    return f"UPDATE {schema}._corrections SET {column} = true WHERE aggregation_id = %s AND rev = ANY(%s)"


def remove_done(schema: str, other: DoneColumn) -> str:
    """Delete each given correction if the column `other` is true.

    Parameters: aggregation's id, list of revs.
    """
    return f"DELETE FROM {schema}._corrections WHERE aggregation_id = %s AND rev = ANY(%s) AND {other}"
