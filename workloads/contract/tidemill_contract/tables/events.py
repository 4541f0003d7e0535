"""`_events`: the raw events, if the spec stores them, with the decoded event in `data`."""

from __future__ import annotations

from tidemill_contract.tables.definition import ELEMENT, Table, columns

TABLE = Table(
    "_events",
    columns(
        ("event_time", "timestamptz NOT NULL"),
        ("epoch", "integer NOT NULL"),
        ("partition", "integer NOT NULL"),
        ("offset", "bigint NOT NULL"),
        ("data", "jsonb NOT NULL"),
        ELEMENT,
    ),
    ('PRIMARY KEY (event_time, epoch, partition, "offset", element)',),
    partition_by="RANGE (event_time)",
    writer_privileges="SELECT, INSERT",
    added_key_columns=("element",),
)


def copy(schema: str) -> str:
    """Copy events into the table.

    Columns: event time, epoch, partition, offset, element, data.
    """
    return f'COPY {schema}."_events" (event_time, epoch, partition, "offset", element, data) FROM STDIN'


def listing(schema: str, further: str) -> str:
    """Select all events, with `data` as text. `further` is SQL of additional columns, which starts with a comma."""
    return f'SELECT event_time, epoch, partition, "offset", data::text AS data{further} FROM {schema}._events'
