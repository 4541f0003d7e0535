"""`_readers`: a row for the live processors, and a row for each replay.

A replay has no watermark. `switched_at` is the time from which queries read the replay's results.
"""

from __future__ import annotations

from tidemill_contract.tables.definition import CLOCK_MS, Table, columns, from_ms, to_ms

LIVE = "live"
"""The reader of the live processors. They read new events of the topic. Each replay has a separate reader."""

TABLE = Table(
    "_readers",
    columns(
        ("reader", "text PRIMARY KEY"),
        ("watermark", "bigint"),
        ("candidate", "bigint"),
        ("candidate_at", "timestamptz"),
        ("active_since", "timestamptz"),
        ("idle_since", "timestamptz"),
        ("idle_base", "bigint"),
        ("switched_at", "timestamptz"),
    ),
    storage="fillfactor = 50",
    writer_privileges="SELECT, UPDATE",
)


def lock(schema: str, reader: str) -> str:
    """Select and lock a reader's row. If the row is locked already, select no row.

    Columns: `watermark`, `candidate`, `candidate_at`, `active_since`, `idle_since`, `idle_base` (the watermark at
    `idle_since`), the server's clock. All times are in epoch milliseconds.
    """
    return (
        f"SELECT watermark, candidate, {to_ms('candidate_at')}, {to_ms('active_since')}, {to_ms('idle_since')},"
        f" idle_base, {CLOCK_MS} FROM {schema}._readers WHERE reader = '{reader}'"
        " FOR UPDATE SKIP LOCKED"
    )


def watermark(schema: str) -> str:
    """Select a reader's watermark.

    Parameter: reader. Column: watermark (epoch ms).
    """
    return f"SELECT watermark FROM {schema}._readers WHERE reader = %s"


def set_watermark(schema: str, reader: str) -> str:
    """Store a reader's watermark.

    Parameters: `watermark`, `candidate`, `candidate_at`, `active_since`, `idle_since`, `idle_base`. The SQL needs
    `candidate_at`, `active_since` and `idle_since` twice, so pass each twice in succession. All times are in epoch
    milliseconds.
    """
    at = from_ms("%s::bigint")
    return (
        f"UPDATE {schema}._readers SET watermark = %s, candidate = %s, candidate_at = {at},"
        f" active_since = {at}, idle_since = {at}, idle_base = %s WHERE reader = '{reader}'"
    )
