"""Tests that a replay that is handed over to live processors counts each event once, on a real Postgres.

Both versions of each aggregation equal a naive model.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from naive.model import Model
from naive.pipeline import BASE, CONFIG, Record, draw_events, take
from naive.tables import verify, wipe
from played.processor import PlayedProcessor, begin_replay, make_replay_tables
from tidemill_contract.runtime import PipelineConfig
from tidemill_processor import replay
from tidemill_processor.database import Database

pytestmark = [pytest.mark.integration, pytest.mark.slow]

# The first test runs a third of this number of random scripts.
EXAMPLES = int(os.environ.get("EXAMPLES", "20"))


READER = "replay-x-1"
NOW = BASE + 86_400_000


class Process(PlayedProcessor):
    """A processor of one reader of the pipeline, whose loop the test plays."""

    def __init__(self, connection: psycopg.Connection[Any], reader: str) -> None:
        super().__init__(connection, CONFIG, reader)

    def take(self, logs: dict[int, list[Record]], size: int, rnd: random.Random, *, crash: bool) -> None:
        """Commit one batch from the current positions. With `crash`, the process ends before the commit."""
        starts = {p: position.next_offset for p, position in self.positions.items()}
        self.step(take({p: log for p, log in logs.items() if p in starts}, starts, size, rnd), NOW, dies=crash)


@pytest.fixture
def replayed(
    make_schema: Callable[[PipelineConfig], tuple[psycopg.Connection[Any], Database]], monkeypatch: pytest.MonkeyPatch
) -> Any:
    """Create the tables of both versions, and return the connection, the database and the rows of version 2."""
    monkeypatch.setattr(replay, "CHECK_SECONDS", 0.0)
    connection, database = make_schema(CONFIG)
    return connection, database, make_replay_tables(connection, database.schema, CONFIG, READER)


def wipe_both(connection: Any, database: Database, rows: Any) -> None:
    """Empty the tables of both versions, and set the live reader and the replay to the start of the topic."""
    wipe(connection, database)
    schema = database.schema
    connection.execute(f"DELETE FROM {schema}._aggregations WHERE reader = %s", (READER,))
    connection.execute(f"DELETE FROM {schema}._offsets WHERE reader = %s", (READER,))
    connection.execute(f"UPDATE {schema}._offsets SET feeds = '{{}}'")
    for row in rows:
        connection.execute(f"TRUNCATE {schema}.{row.table_name}")
    begin_replay(connection, schema, rows, READER)


REPLAY_ACTION = st.sampled_from([
    "live", "live", "live dies", "live starts", "replay", "replay", "replay dies", "replay starts", "meet",
    "other", "other meet", "other starts",
])  # fmt: skip


@pytest.mark.exhaustive
@settings(
    max_examples=max(1, EXAMPLES // 3),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    st.integers(0, 150),
    st.lists(st.tuples(REPLAY_ACTION, st.integers(1, 80)), min_size=4, max_size=24),
    st.integers(0, 10**9),
)
def test_both_versions_equal_a_naive_model(
    replayed: Any, number: int, script: list[tuple[str, int]], seed: int
) -> None:
    """Each version counts each event once, although two processes of the replay read all partitions."""
    connection, database, rows = replayed
    wipe_both(connection, database, rows)
    rnd = random.Random(seed)
    logs = draw_events(rnd, number)
    live, filling, other = (Process(connection, reader) for reader in ("live", READER, READER))
    for action, size in script:
        who, _, event = action.partition(" ")
        process = {"live": live, "other": other}.get(who, filling)
        if "meet" in action:
            process.hand_over()
        elif event == "starts":
            process.start()
        else:
            process.take(logs, size, rnd, crash=event == "dies")
    # The live processor reads on, and the replay catches up until all its partitions are handed over.
    for _ in range(number + 2):
        if not filling.positions:
            break
        live.take(logs, rnd.randint(1, 100), rnd, crash=False)
        filling.take(logs, rnd.randint(1, 100), rnd, crash=False)
        filling.hand_over()
        other.take(logs, rnd.randint(1, 100), rnd, crash=False)
    while any(p.next_offset < len(logs[at]) for at, p in live.positions.items()):
        live.take(logs, 1_000, rnd, crash=False)
    filling.hand_over()
    assert filling.positions == {}, "all partitions are handed over"
    model = Model()
    model.add_batch([record for log in logs.values() for record in log])
    verify(connection, database, live.database.aggregations(connection), model)
    verify(connection, database, filling.database.aggregations(connection), model)


def test_a_process_that_missed_the_handover_stores_nothing(replayed: Any) -> None:
    """Another process has handed over all partitions before a record was read, and no position has changed."""
    connection, database, rows = replayed
    wipe_both(connection, database, rows)
    rnd = random.Random(1)
    logs = draw_events(rnd, 60)
    live, filling, other = (Process(connection, reader) for reader in ("live", READER, READER))
    filling.hand_over()
    assert (filling.positions, len(other.positions)) == ({}, 3)
    live.take(logs, 1_000, rnd, crash=False)
    other.take(logs, 1_000, rnd, crash=False)
    assert other.positions == {}
    model = Model()
    model.add_batch([record for log in logs.values() for record in log])
    verify(connection, database, live.database.aggregations(connection), model)
    verify(connection, database, filling.database.aggregations(connection), model)
