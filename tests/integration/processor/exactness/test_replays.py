"""A replay that meets live processors: its version ends with every event once, too."""

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

# How many scripts are drawn of the dearest kind; of the others some less.
EXAMPLES = int(os.environ.get("EXAMPLES", "20"))


READER = "replay-x-1"
NOW = BASE + 86_400_000


class Process(PlayedProcessor):
    """A processor of one reader of the pipeline."""

    def __init__(self, connection: psycopg.Connection[Any], reader: str) -> None:
        super().__init__(connection, CONFIG, reader)

    def take(self, logs: dict[int, list[Record]], size: int, rnd: random.Random, *, crash: bool) -> None:
        """One batch from where it stands; `crash`: it dies before the commit."""
        starts = {p: position.next_offset for p, position in self.positions.items()}
        self.step(take({p: log for p, log in logs.items() if p in starts}, starts, size, rnd), NOW, dies=crash)


@pytest.fixture
def replayed(
    make_schema: Callable[[PipelineConfig], tuple[psycopg.Connection[Any], Database]], monkeypatch: pytest.MonkeyPatch
) -> Any:
    """The tables of both versions."""
    monkeypatch.setattr(replay, "ASK_SECONDS", 0.0)
    connection, database = make_schema(CONFIG)
    return connection, database, make_replay_tables(connection, database.schema, CONFIG, READER)


def wipe_both(connection: Any, database: Database, rows: Any) -> None:
    """Live at the start of the topic, and the replay as well."""
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
    """A replay that is handed over, two processes of which think that all is theirs: each event is once in each."""
    connection, database, rows = replayed
    wipe_both(connection, database, rows)
    rnd = random.Random(seed)
    logs = draw_events(rnd, number)
    live, filling, other = (Process(connection, reader) for reader in ("live", READER, READER))
    for action, size in script:
        who, _, what = action.partition(" ")
        process = {"live": live, "other": other}.get(who, filling)
        if "meet" in action:
            process.meet()
        elif what == "starts":
            process.start()
        else:
            process.take(logs, size, rnd, crash=what == "dies")
    # Live reads on; the replay comes closer, and is done before live is, or after.
    for _ in range(number + 2):
        if not filling.positions:
            break
        live.take(logs, rnd.randint(1, 100), rnd, crash=False)
        filling.take(logs, rnd.randint(1, 100), rnd, crash=False)
        filling.meet()
        other.take(logs, rnd.randint(1, 100), rnd, crash=False)
    while any(p.next_offset < len(logs[at]) for at, p in live.positions.items()):
        live.take(logs, 1_000, rnd, crash=False)
    filling.meet()
    assert filling.positions == {}, "every partition is handed over"
    model = Model()
    model.add_batch([record for log in logs.values() for record in log])
    verify(connection, database, live.database.aggregations(connection), model)
    verify(connection, database, filling.database.aggregations(connection), model)


def test_a_process_that_did_not_notice_the_handover(replayed: Any) -> None:
    """Handed over by another one where nothing was left to read, so that no position has moved: it stores nothing."""
    connection, database, rows = replayed
    wipe_both(connection, database, rows)
    rnd = random.Random(1)
    logs = draw_events(rnd, 60)
    live, filling, other = (Process(connection, reader) for reader in ("live", READER, READER))
    filling.meet()
    assert (filling.positions, len(other.positions)) == ({}, 3)
    live.take(logs, 1_000, rnd, crash=False)
    other.take(logs, 1_000, rnd, crash=False)
    assert other.positions == {}
    model = Model()
    model.add_batch([record for log in logs.values() for record in log])
    verify(connection, database, live.database.aggregations(connection), model)
    verify(connection, database, filling.database.aggregations(connection), model)
