"""Tests that windows on a real Postgres equal a naive model, whatever happens between batches.

Random scripts commit batches of any size, crash, close windows, and commit outdated batches again.
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
from naive.pipeline import BASE, CONFIG, EXPLODED, SPEC, draw_events, in_arrays, take
from naive.tables import close_until, verify, wipe
from tidemill_contract.resource.spec import PipelineSpec
from tidemill_contract.runtime import PipelineConfig
from tidemill_processor.batches.exploding import batch_reader
from tidemill_processor.database import Database
from tidemill_processor.merge import merging
from tidemill_processor.transaction import Committer, Fenced, Position

pytestmark = [pytest.mark.integration, pytest.mark.slow]

# The number of random scripts of the first test. The other tests run fewer scripts.
EXAMPLES = int(os.environ.get("EXAMPLES", "20"))


ACTION = st.sampled_from(["commit", "commit", "commit", "crash", "close", "redeliver", "zombie"])


@pytest.fixture
def stage(
    make_schema: Callable[[PipelineConfig], tuple[psycopg.Connection[Any], Database]], monkeypatch: pytest.MonkeyPatch
) -> Any:
    monkeypatch.setattr(merging, "SKETCH_BYTES", 400)  # With this limit, appended sketches are compacted often.
    return make_schema(CONFIG)


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    st.integers(0, 300),
    st.lists(st.tuples(ACTION, st.integers(1, 80), st.integers(0, 7)), min_size=4, max_size=16),
    st.integers(0, 10**9),
)
def test_windows_equal_a_naive_model(stage: Any, number: int, script: list[tuple[str, int, int]], seed: int) -> None:
    """Each record counts exactly once in each of its open windows."""
    connection, database = stage
    rnd = random.Random(seed)
    play_script(connection, database, script, draw_events(rnd, number), rnd, SPEC)


@settings(
    max_examples=max(1, EXAMPLES // 4),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    st.integers(0, 200),
    st.lists(st.tuples(ACTION, st.integers(1, 40), st.integers(0, 7)), min_size=4, max_size=12),
    st.integers(0, 10**9),
)
def test_elements_of_records_equal_a_naive_model(
    stage: Any, number: int, script: list[tuple[str, int, int]], seed: int
) -> None:
    """Each element of an exploded array counts exactly once. A record may have both late and punctual elements."""
    connection, database = stage
    rnd = random.Random(seed)
    play_script(connection, database, script, in_arrays(draw_events(rnd, number), rnd), rnd, EXPLODED)


def play_script(
    connection: Any,
    database: Database,
    script: list[tuple[str, int, int]],
    logs: dict[int, list[Any]],
    rnd: random.Random,
    spec: PipelineSpec,
) -> None:
    """Play a script with these logs, and compare the windows with the model."""
    wipe(connection, database)
    stores = database.aggregations(connection)
    config = CONFIG.model_copy(update={"spec": spec})
    committer = Committer(connection, database, stores, config)
    reader, model = batch_reader(spec), Model()
    positions = {p: Position(0, 0) for p in logs}
    for action, size, minutes in [*script, *[("commit", 1_000, 0)] * 2]:
        if action == "close":
            close_until(connection, database, stores, model, BASE + minutes * 60_000)
            continue
        start = {p: positions[p].next_offset for p in logs}
        batch = take(logs, start, size, rnd)
        if not batch:
            continue
        read = reader.read(batch, BASE + 86_400_000)
        if action == "crash":
            with connection.transaction() as transaction:
                committer.commit(read, positions)
                raise psycopg.Rollback(transaction)
            # A new process does not know the table partitions whose creation was rolled back.
            committer = Committer(connection, database, stores, config)
            continue
        positions.update(committer.commit(read, positions).positions)
        model.add_batch([event for record in batch for event in getattr(record, "elements", [record])])
        if action in ("redeliver", "zombie"):
            stale = {p: Position(start[p], 0) for p in logs}
            with pytest.raises(Fenced) as fenced:
                committer.commit(read, stale)
            assert set(read.next_offsets) == fenced.value.partitions
    verify(connection, database, stores, model)
