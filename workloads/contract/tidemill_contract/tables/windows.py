"""The table of an aggregation version: a row for each group and window, or pane of hopping windows."""

from __future__ import annotations

from tidemill_contract.functions.feeds import SINCE
from tidemill_contract.functions.partials import SQL_TYPES, AggregationLayout, quote
from tidemill_contract.tables.definition import Column, Table


def window_table(name: str, plan: AggregationLayout) -> Table:
    """The table of an aggregation's windows (or panes, for hopping windows)."""
    columns = [Column(group, SQL_TYPES[kind]) for group, kind in plan.group_by]
    columns.append(Column("window_start", "timestamptz NOT NULL"))
    if plan.sessions:
        columns.append(Column("window_end", "timestamptz NOT NULL"))
    if plan.hopping:
        columns.append(Column("_after", "timestamptz NOT NULL DEFAULT '-infinity'"))
    # A row that is older than this column counts as written before any other was added.
    columns += [Column("_rev", "bigint NOT NULL"), Column(SINCE, "bigint NOT NULL DEFAULT 0")]
    columns += [Column(p.column, p.sql_type) for p in plan.partials]
    # Group columns may be null, and a null is a group like any other.
    unique = ", ".join(quote(column) for column in plan.key_columns)
    indexes = [(f"{name}_by_time"[:63], '("window_start")')]
    if plan.sessions:
        # Closing reads what ended last; merging asks for a group's sessions that end after an event.
        ends = ", ".join(quote(column) for column in (*(group for group, _ in plan.group_by), "window_end"))
        indexes += [(f"{name}_by_end"[:63], '("window_end")'), (f"{name}_open"[:63], f"({ends})")]
    return Table(
        name,
        tuple(columns),
        (f"UNIQUE NULLS NOT DISTINCT ({unique})",),
        partition_by='RANGE ("window_start")',
        storage="fillfactor = 80",
        indexes=tuple(indexes if not plan.sessions or plan.group_by else indexes[:2]),
        # Sessions that grow together become one row.
        writer="SELECT, INSERT, UPDATE, DELETE" if plan.sessions else "SELECT, INSERT, UPDATE",
    )
