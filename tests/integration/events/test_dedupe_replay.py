"""Tests of `source.dedupe` during a replay, on a real Postgres: each version counts each id once."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from played.dedupe import BASE, CONFIG, HOUR, NOW, PARTITIONS, SPEC, Process, event, logged, totals
from played.processor import PlayedProcessor, begin_replay, make_replay_tables
from tidemill_contract.runtime import AggregationRef, PipelineConfig
from tidemill_processor import replay
from tidemill_processor.database import Database
from tidemill_processor.transaction import Superseded

pytestmark = pytest.mark.integration


READER = "replay-x-1"


@pytest.fixture
def replayed(
    make_schema: Callable[[PipelineConfig], tuple[psycopg.Connection[Any], Database]], monkeypatch: pytest.MonkeyPatch
) -> Any:
    """Create the tables of a second version, and let a replay begin that fills them.

    Return the administrator's connection and the quoted name of the schema.
    """
    monkeypatch.setattr(replay, "CHECK_SECONDS", 0.0)
    connection, database = make_schema(CONFIG)
    name = database.schema
    rows = make_replay_tables(connection, name, CONFIG, READER)
    begin_replay(connection, name, rows, READER)
    return connection, name


def test_live_processors_know_the_ids_of_a_replay_after_the_switch(replayed: Any) -> None:
    """Only the replay has stored the ids, because the live processors counted the events before dedupe was added."""
    connection, name = replayed
    logs = logged([event(f"id-{n}", n) for n in range(50)] * 2)
    live, filling = Process(connection), Process(connection, READER)
    live.take(logs, {0: 50})
    connection.execute(f"DELETE FROM {name}._dedupe WHERE reader = 'live'")
    filling.take(logs, {0: 50})
    assert totals(connection, name, "daily_v2") == (50, 50)
    # The operator's `_ensure_aggregations` and `switch` execute these statements.
    connection.execute(f"UPDATE {name}._aggregations SET reader = 'live'")
    connection.execute(f"UPDATE {name}._readers SET switched_at = now() WHERE reader = '{READER}'")
    connection.execute(f"DELETE FROM {name}._offsets WHERE reader = '{READER}'")
    after = CONFIG.model_copy(
        update={"aggregations": tuple(AggregationRef(name=a.name, version=2) for a in SPEC.aggregations)}
    )
    switched = PlayedProcessor(connection, after)
    switched.step(logs[0][50:], NOW)
    assert totals(connection, name, "daily_v2") == (50, 50)


def test_a_replay_that_is_cancelled_and_requested_again_counts_all_events(replayed: Any) -> None:
    """The same annotation gives the same reader. The ids of the cancelled replay are still stored."""
    connection, name = replayed
    logs = logged([event(f"id-{n}", n, 1) for n in range(50)])
    live, filling = Process(connection), Process(connection, READER)
    live.take(logs, {0: 50})
    filling.take(logs, {0: 30})
    # The operator cancels the replay (`delete_cancelled_replays`). The replay is requested again before the keeper
    # deletes the ids.
    for statement in (
        f"UPDATE {name}._offsets SET feeds = '{{}}'",
        f"DELETE FROM {name}._aggregations WHERE reader = '{READER}'",
        f"DROP TABLE {name}.hourly_v2, {name}.daily_v2",
        f"DELETE FROM {name}._offsets WHERE reader = '{READER}'",
        f"DELETE FROM {name}._readers WHERE reader = '{READER}'",
    ):
        connection.execute(statement)
    begin_replay(connection, name, make_replay_tables(connection, name, CONFIG, READER), READER)
    stale, filling = filling, Process(connection, READER)
    stale.positions = dict(filling.positions)
    with pytest.raises(Superseded, match="no longer counted"):
        stale.take(logs, {0: 5})
    filling.take(logs, {0: 50})
    assert totals(connection, name, "daily_v2") == (50, 50)


@pytest.mark.parametrize("seed", range(6))
def test_a_replay_and_live_processors_count_each_id_once(replayed: Any, seed: int) -> None:
    """The processes restart, die before a commit, and hand partitions over in any order."""
    connection, name = replayed
    rnd = random.Random(seed)
    events = [event(f"id-{n}", rnd.randrange(8 * HOUR), rnd.randint(1, 9)) for n in range(80)]
    copies = [sent for sent in events for _ in range(rnd.choice([1, 1, 2, 4]))]
    rnd.shuffle(copies)
    logs = logged(*(copies[p::PARTITIONS] for p in range(PARTITIONS)))
    live, filling, other = Process(connection), Process(connection, READER), Process(connection, READER)
    cleaner = live.event_id_cleaner()
    connection.execute(f"UPDATE {name}._readers SET watermark = %s WHERE reader = 'live'", (BASE,))
    for _ in range(400):
        process = rnd.choice([live, filling, filling, other])
        action = rnd.choice(["step"] * 5 + ["dies", "starts", "meet", "forget"])
        if action == "meet" and process is not live:
            process.hand_over()
        elif action == "starts":
            process.start()
        elif action == "forget":
            cleaner.run(connection)
        else:
            sizes = {p: rnd.randrange(9) for p in range(PARTITIONS)}
            process.take(logs, sizes, dies=action == "dies")
    while live.take(logs, dict.fromkeys(logs, 50)) is not None:
        pass
    while filling.take(logs, dict.fromkeys(logs, 50)) is not None:
        pass
    filling.hand_over()
    assert filling.positions == {}, "all partitions are handed over"
    expected = len(events), sum(counted["v"] for counted in events)
    assert totals(connection, name, "daily_v1") == expected
    assert totals(connection, name, "daily_v2") == expected
    assert totals(connection, name, "hourly_v2") == expected
    assert connection.execute(f"SELECT count(*) FROM {name}._events").fetchone() == (len(events),)
