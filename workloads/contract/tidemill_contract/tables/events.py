"""`_events`: the events themselves, if the spec stores them. `data` is the decoded event."""

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
    """Copy events into the table. Columns: event time, epoch, partition, offset, data."""
    return f'COPY {schema}."_events" (event_time, epoch, partition, "offset", data) FROM STDIN'


def listing(schema: str, further: str) -> str:
    """Select all events; `further` is SQL of more columns, each with a comma before it."""
    return f'SELECT event_time, epoch, partition, "offset", data{further} FROM {schema}._events'
