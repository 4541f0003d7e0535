"""Merges a batch's partial results into stored windows, via a temporary table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import polars as pl
import psycopg

from tidemill_contract.functions.fill_history import SINCE
from tidemill_contract.functions.partials import SKETCHES, Partial, merge_expression, quote
from tidemill_contract.tables.definition import from_ms
from tidemill_processor.database import AggregationStore, Database
from tidemill_processor.merge import group_columns, sessions
from tidemill_processor.merge.aggregate import AFTER, END, NO_AFTER, PANE, Aggregated

SKETCH_BYTES = 16 * 1024
"""Sketches of more than this many bytes are compacted after a merge."""


@dataclass
class MergeTask:
    """The results of a batch for one version of an aggregation."""

    store: AggregationStore
    closed_until: int | None
    result: Aggregated
    frame: pl.DataFrame


def temp_table(store: AggregationStore) -> str:
    """Return the quoted name of the temporary table for an aggregation."""
    return quote(f"batch_{store.id}")


def temp_table_sql(store: AggregationStore) -> str:
    """Return the statement that creates the temporary table."""
    columns = [f"{quote(name)} {group_columns.transfer_type(kind)}" for name, kind in store.layout.group_by]
    columns.append(f"{quote(PANE)} bigint")
    if store.layout.is_hopping:
        columns.append(f"{quote(AFTER)} bigint")
    if store.layout.has_sessions:
        columns += [
            f"{END} bigint",
            f"{sessions.SINCE} bigint DEFAULT {store.since}",
            f"{sessions.OLD} boolean DEFAULT false",
        ]
    columns += [f"{quote(p.column)} {_temp_type(p.sql_type)}" for p in store.layout.partials]
    return f"CREATE TEMP TABLE IF NOT EXISTS {temp_table(store)} ({', '.join(columns)}) ON COMMIT DELETE ROWS"


def _temp_type(sql_type: str) -> str:
    return "bigint" if sql_type == "timestamptz" else sql_type


def merge_sql(database: Database, store: AggregationStore) -> str:
    """Return the statement that merges the temporary table into the window table.

    The statement returns these columns: window start, oid of the table, ctid, sketches to compact.
    """
    layout = store.layout
    if layout.has_sessions:
        before, merge = sessions.SessionMerger(database, store, temp_table(store)).merge_sql()
    else:
        before, merge = "", _upsert(database, store)
    columns_of_sketches = [quote(p.column) for p in sketch_partials(store)]
    if columns_of_sketches:
        has_grown = " OR ".join(_has_grown(f"t.{column}") for column in columns_of_sketches)
        # Return NULL for small sketches. Postgres keeps all returned values in memory during the merge.
        select_list = ", ".join(
            f"CASE WHEN {has_grown} THEN t.{column} END AS {column}" for column in columns_of_sketches
        )
        merge = f"{merge} RETURNING t.window_start, t.tableoid::bigint, t.ctid::text, {select_list}"
        before = ", ".join([*([before] if before else []), f"merged AS ({merge})"])
        has_any = " OR ".join(f"{column} IS NOT NULL" for column in columns_of_sketches)
        merge = f"SELECT * FROM merged WHERE {has_any}"
    return f"WITH {before} {merge}" if before else merge


def _has_grown(column: str) -> str:
    first = f"('x' || encode(substr({column}, 1, 4), 'hex'))::bit(32)::integer"
    return f"CASE WHEN octet_length({column}) > {SKETCH_BYTES} THEN octet_length({column}) > 2 * {first} ELSE false END"


def _upsert(database: Database, store: AggregationStore) -> str:
    layout = store.layout
    columns, values = [], []
    for name, kind in layout.group_by:
        columns.append(quote(name))
        values.append(group_columns.to_stored(kind, quote(name)))
    columns.append("window_start")
    values.append(from_ms(quote(PANE)))
    if layout.is_hopping:
        columns.append("_after")
        no_after = f"{quote(AFTER)} = {NO_AFTER}"
        values.append(f"CASE WHEN {no_after} THEN '-infinity' ELSE {from_ms(quote(AFTER))} END")
    columns += ["_rev", SINCE]
    values += ["%(rev)s", str(store.since)]
    for partial in layout.partials:
        columns.append(quote(partial.column))
        values.append(from_ms(quote(partial.column)) if partial.sql_type == "timestamptz" else quote(partial.column))
    merged = [f"{quote(p.column)} = {merge_expression(p)}" for p in layout.partials]
    sets = ", ".join(["_rev = EXCLUDED._rev", f"{SINCE} = least(t.{SINCE}, EXCLUDED.{SINCE})", *merged])
    keys = ", ".join(quote(key) for key in layout.key_columns)
    return (
        f"INSERT INTO {database.qualified(store.table)} AS t ({', '.join(columns)})"
        f" SELECT {', '.join(values)} FROM pg_temp.{temp_table(store)}"
        f" ON CONFLICT ({keys}) DO UPDATE SET {sets}"
    )


def sketch_partials(store: AggregationStore) -> list[Partial]:
    """Return the partial results that are stored as sketches."""
    return [partial for partial in store.layout.partials if partial.kind in SKETCHES]


def copy_rows(connection: psycopg.Connection[Any], store: AggregationStore, rows: pl.DataFrame) -> None:
    """Copy partial results (see `Aggregated`) into the temporary table."""
    if not rows.height:
        return
    # Sort the rows like the index, which makes the merge faster.
    rows = rows.sort([*(name for name, _ in store.layout.group_by), PANE])
    stored = []
    for name, dtype in rows.schema.items():
        column = pl.col(name)
        if isinstance(dtype, pl.Datetime):
            column = column.cast(pl.Int64)
        elif dtype == pl.Binary:
            column = (pl.lit("\\x") + column.bin.encode("hex")).alias(name)
        stored.append(column)
    text = rows.select(stored).write_csv(include_header=False, quote_style="non_numeric")
    columns = ", ".join(quote(name) for name in rows.columns)
    into = f"COPY pg_temp.{temp_table(store)} ({columns}) FROM STDIN (FORMAT csv)"
    with connection.cursor().copy(into) as stream:
        stream.write(text.encode())


def compact_sketches(
    connection: psycopg.Connection[Any], database: Database, store: AggregationStore, grown_rows: list[tuple[Any, ...]]
) -> None:
    """Compact the sketches in the rows that the merge returned."""
    from tidemill_contract.functions import sketches

    partials = sketch_partials(store)
    sets = ", ".join(f"{quote(p.column)} = %s" for p in partials)
    update = (
        f"UPDATE {database.qualified(store.table)} SET {sets}"
        " WHERE window_start = %s AND tableoid = %s AND ctid = %s::text::tid"
    )
    rows = []
    for start, table, ctid, *stored in grown_rows:
        values = [
            sketches.compact(partial, sketch) if sketch is not None and len(sketch) > SKETCH_BYTES else sketch
            for partial, sketch in zip(partials, stored, strict=True)
        ]
        rows.append((*values, start, table, ctid))
    if rows:
        connection.cursor().executemany(update, rows)
