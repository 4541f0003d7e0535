"""SQL of the batch's transaction: the temporary table of an aggregation's partials, and merging it into the windows."""

from __future__ import annotations

from tidemill_contract.feeds import SINCE
from tidemill_contract.partials import SKETCHES, SQL_TYPES, Partial, merge_expression, quote
from tidemill_processor import sessions
from tidemill_processor.aggregate import AFTER, END, NO_CUT, PANE
from tidemill_processor.database import AggregationStore, Database, from_ms

SKETCH_BYTES = 16 * 1024
"""How long a row's appended sketches may grow; one of a million values takes 9 kB."""


def temp_table(store: AggregationStore) -> str:
    """The quoted name of the temporary table that an aggregation's partials are copied to."""
    return quote(f"batch_{store.id}")


def temp_table_sql(store: AggregationStore) -> str:
    """The statement that makes it."""
    columns = [f"{quote(name)} {_plain(SQL_TYPES[kind])}" for name, kind in store.layout.group_by]
    columns.append(f"{quote(PANE)} bigint")
    if store.layout.hopping:
        columns.append(f"{quote(AFTER)} bigint")
    if store.layout.sessions:
        columns += [
            f"{END} bigint",
            f"{sessions.SINCE} bigint DEFAULT {store.since}",
            f"{sessions.OLD} boolean DEFAULT false",
        ]
    columns += [f"{quote(p.column)} {_plain(p.sql_type)}" for p in store.layout.partials]
    return f"CREATE TEMP TABLE IF NOT EXISTS {temp_table(store)} ({', '.join(columns)}) ON COMMIT DELETE ROWS"


def _plain(sql_type: str) -> str:
    """Times travel as milliseconds, so that no text has to be parsed."""
    return "bigint" if sql_type == "timestamptz" else sql_type


def merge_sql(database: Database, store: AggregationStore) -> str:
    """The statement that merges the temporary table into the window table; its one parameter is the batch's `rev`.

    With sketches it gives back those that have grown long: window start, table, place in it, all the row's sketches.
    """
    plan = store.layout
    if plan.sessions:
        before, merge = sessions.SessionMerger(database, store, temp_table(store)).put_sql()
    else:
        before, merge = "", _upsert(database, store)
    columns_of_sketches = [quote(p.column) for p in sketched(store)]
    if columns_of_sketches:
        listed = ", ".join(f"t.{column}" for column in columns_of_sketches)
        long = " OR ".join(f"octet_length({column}) > {SKETCH_BYTES}" for column in columns_of_sketches)
        merge = f"{merge} RETURNING t.window_start, t.tableoid::bigint, t.ctid::text, {listed}"
        before = ", ".join([*([before] if before else []), f"merged AS ({merge})"])
        merge = f"SELECT * FROM merged WHERE {long}"
    return f"WITH {before} {merge}" if before else merge


def _upsert(database: Database, store: AggregationStore) -> str:
    plan = store.layout
    columns, values, order = [], [], []
    for name, kind in plan.group_by:
        columns.append(quote(name))
        values.append(from_ms(quote(name)) if kind == "timestamp" else quote(name))
        order.append(quote(name))
    columns.append("window_start")
    values.append(from_ms(quote(PANE)))
    order.append(quote(PANE))
    if plan.hopping:
        columns.append("_after")
        none = f"{quote(AFTER)} = {NO_CUT}"
        values.append(f"CASE WHEN {none} THEN '-infinity' ELSE {from_ms(quote(AFTER))} END")
        order.append(quote(AFTER))
    columns += ["_rev", SINCE]
    values += ["%(rev)s", str(store.since)]
    for partial in plan.partials:
        columns.append(quote(partial.column))
        values.append(from_ms(quote(partial.column)) if partial.sql_type == "timestamptz" else quote(partial.column))
    merged = [f"{quote(p.column)} = {merge_expression(p)}" for p in plan.partials]
    sets = ", ".join(["_rev = EXCLUDED._rev", f"{SINCE} = least(t.{SINCE}, EXCLUDED.{SINCE})", *merged])
    keys = ", ".join(quote(key) for key in plan.key_columns)
    return (
        f"INSERT INTO {database.qualified(store.table)} AS t ({', '.join(columns)})"
        f" SELECT {', '.join(values)} FROM pg_temp.{temp_table(store)} ORDER BY {', '.join(order)}"
        f" ON CONFLICT ({keys}) DO UPDATE SET {sets}"
    )


def sketched(store: AggregationStore) -> list[Partial]:
    """The partials that are sketches."""
    return [partial for partial in store.layout.partials if partial.kind in SKETCHES]
