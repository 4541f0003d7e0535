"""`_readers`: those who read the source topic, each with a clock of event time.

A reader is one consumer group's way through the source topic: `live`, or a replay. Its event-time clock is here (a
replay has none: nothing is late for it). `switched_at`: since when what a replay has filled is in force.
"""

from __future__ import annotations

from tidemill_contract.tables.definition import Table, columns

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
