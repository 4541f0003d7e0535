"""`_events`: raw events, if the spec stores them.

`data` is the decoded event.
"""

from __future__ import annotations

from tidemill_contract.tables.definition import Table, columns

TABLE = Table(
    "_events",
    columns(
        ("event_time", "timestamptz NOT NULL"),
        ("epoch", "integer NOT NULL"),
        ("partition", "integer NOT NULL"),
        ("offset", "bigint NOT NULL"),
        ("data", "jsonb NOT NULL"),
    ),
    ('PRIMARY KEY (event_time, epoch, partition, "offset")',),
    partition_by="RANGE (event_time)",
    writer="SELECT, INSERT",
)


def copy(schema: str) -> str:
    """Take in events: time, epoch, partition, offset, data."""
    return f'COPY {schema}."_events" (event_time, epoch, partition, "offset", data) FROM STDIN'


def listing(schema: str, further: str) -> str:
    """A relation of all events; `further` are columns out of `data`, each after a comma."""
    return f'SELECT event_time, epoch, partition, "offset", data{further} FROM {schema}._events'
