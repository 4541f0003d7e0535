"""The table with the windows of one version of an aggregation.

A row contains the results of one group. The row covers a window or a pane (a part of a window).
"""

from __future__ import annotations

from tidemill_contract.functions.fill_history import SINCE
from tidemill_contract.functions.partials import SQL_TYPES, AggregationLayout, quote
from tidemill_contract.tables.definition import Column, Table


def window_table(name: str, layout: AggregationLayout) -> Table:
    """Return the definition of a window table with the given name and layout."""
    columns = [Column(group, SQL_TYPES[kind]) for group, kind in layout.group_by]
    columns.append(Column("window_start", "timestamptz NOT NULL"))
    if layout.has_sessions:
        columns.append(Column("window_end", "timestamptz NOT NULL"))
    if layout.is_hopping:
        columns.append(Column("_after", "timestamptz NOT NULL DEFAULT '-infinity'"))
    # Rows that were stored before the column `_since` existed have the default 0.
    columns += [Column("_rev", "bigint NOT NULL"), Column(SINCE, "bigint NOT NULL DEFAULT 0")]
    columns += [Column(p.column, p.sql_type) for p in layout.partials]
    # The unique key treats null as a normal value, because the events with null form one group.
    unique = ", ".join(quote(column) for column in layout.key_columns)
    indexes = [(f"{name}_by_time"[:63], '("window_start")')]
    if layout.has_sessions:
        # The index `_by_end` is for closing sessions. The index `_open` is for finding the sessions that an event can
        # join.
        ends = ", ".join(quote(column) for column in (*(group for group, _ in layout.group_by), "window_end"))
        indexes += [(f"{name}_by_end"[:63], '("window_end")'), (f"{name}_open"[:63], f"({ends})")]
    return Table(
        name,
        tuple(columns),
        (f"UNIQUE NULLS NOT DISTINCT ({unique})",),
        partition_by='RANGE ("window_start")',
        storage="fillfactor = 80",
        indexes=tuple(indexes if not layout.has_sessions or layout.group_by else indexes[:2]),
        # Processors need DELETE for sessions, because extending a session deletes its row and inserts a new row.
        writer_privileges="SELECT, INSERT, UPDATE, DELETE" if layout.has_sessions else "SELECT, INSERT, UPDATE",
    )
