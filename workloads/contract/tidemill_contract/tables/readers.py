"""`_readers`: the consumer groups that read the source topic.

A reader is `live`, or a replay. Its row has its event-time clock; a replay has none, because nothing is late for it.
`switched_at`: when a replay's versions came into force.
"""

from __future__ import annotations

from tidemill_contract.tables.definition import CLOCK_MS, Table, columns, from_ms, to_ms

LIVE = "live"
"""The reader of processors that follow the topic; a replay has another."""

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
    writer="SELECT, UPDATE",
)


def lock(schema: str, reader: str) -> str:
    """Lock a reader's row, unless somebody else has.

    Row: watermark, candidate, since when (epoch ms) it is one, the reader is active and is idle, idle base, the
    server's clock (epoch ms).
    """
    return (
        f"SELECT watermark, candidate, {to_ms('candidate_at')}, {to_ms('active_since')}, {to_ms('idle_since')},"
        f" idle_base, {CLOCK_MS} FROM {schema}._readers WHERE reader = '{reader}'"
        " FOR UPDATE SKIP LOCKED"
    )


def watermark(schema: str) -> str:
    """Row: the watermark (epoch ms). Parameter: reader."""
    return f"SELECT watermark FROM {schema}._readers WHERE reader = %s"


def move(schema: str, reader: str) -> str:
    """Set a reader's clock.

    Parameters: watermark, candidate, twice each since when (epoch ms) it is one, the reader is active and is idle, idle
    base.
    """
    at = from_ms("%s::bigint")
    return (
        f"UPDATE {schema}._readers SET watermark = %s, candidate = %s, candidate_at = {at},"
        f" active_since = {at}, idle_since = {at}, idle_base = %s WHERE reader = '{reader}'"
    )
