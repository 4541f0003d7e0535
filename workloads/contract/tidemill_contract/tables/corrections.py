"""`_corrections`: batches that changed windows which were closed.

Batches that changed closed windows: those that carry `rev` and start in [first_start, last_start] (epoch ms). These
windows are published and judged once more; the row goes when both is done.
"""

from __future__ import annotations

from tidemill_contract.tables.definition import Table, columns

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
