"""Functions that empty the pipeline's tables, close windows, and compare the windows with the model."""

from __future__ import annotations

from typing import Any

import psycopg

from naive.model import Model, close, expected
from naive.pipeline import BASE, NAMES
from tidemill_contract.times import rfc3339_ms
from tidemill_processor.database import Database
from tidemill_processor.windows.reader import WindowReader


def wipe(connection: psycopg.Connection[Any], database: Database) -> None:
    """Empty the tables of version 1, and set all positions to the start of the topic."""
    schema = database.schema
    for name in NAMES:
        connection.execute(f"TRUNCATE {schema}.{name}_v1")
    connection.execute(f"TRUNCATE {schema}._dead_letters, {schema}._corrections")
    connection.execute(
        f"UPDATE {schema}._aggregations SET closed_until = NULL, rev = 0, late_dead = 0, late_dropped = 0"
    )
    connection.execute(
        f"UPDATE {schema}._offsets SET topic_id = 'x', epoch = 0, next_offset = 0, max_event_time = NULL,"
        " suspects = '{}'"
    )


def close_until(connection: Any, database: Database, stores: Any, model: Model, until: int) -> None:
    """Close windows that end by a time, in the tables and in the model."""
    for store in stores:
        before = model.closed[store.name]
        model.closed[store.name] = until if before is None else max(before, until)
        connection.execute(
            f"UPDATE {database.schema}._aggregations SET closed_until = %s WHERE id = %s",
            (model.closed[store.name], store.id),
        )


def verify(connection: Any, database: Database, stores: Any, model: Model) -> None:
    """Assert that windows, counts of late events and dead letters equal the model."""
    for store in stores:
        with connection.transaction():
            rows = list(WindowReader(database, store).read(connection, BASE - 3_600_000, BASE + 3_600_000))
        groups = store.spec.group_by
        got = {(*(row[name] for name in groups), row["window_start"], row["window_end"]): row for row in rows}
        want = {
            (*group, rfc3339_ms(start), rfc3339_ms(end)): events
            for (*group, start, end), events in model.expected(store.name).items()
        }
        assert set(want) == set(got), store.name
        assert len(got) == len(rows)
        for key, events in want.items():
            scale = sum(abs(r.members.get("v") or 0) for r in events) or 1.0
            for metric, value in expected(events).items():
                limit = scale * scale if metric == "va" else 1.0 if metric == "sd" else scale
                assert close(got[key][metric], value, limit), (store.name, key, metric, got[key][metric], value)
        column = "late_dropped" if store.spec.late_policy == "drop" else "late_dead"
        count = connection.execute(
            f"SELECT {column} FROM {database.schema}._aggregations WHERE id = %s", (store.id,)
        ).fetchone()
        assert model.late[store.name] == count[0]
    letters = connection.execute(
        f"SELECT aggregation, count(*) FROM {database.schema}._dead_letters GROUP BY 1"
    ).fetchall()
    assert dict(letters) == {name: n for name, n in model.late.items() if n and name not in ("total", "bursts")}
