"""Tests of `source.dedupe`: an event with several copies counts once, across batches, partitions and processes.

Most tests play the processor's loop on a real Postgres. One test kills real processors on a real Kafka.
"""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Callable
from typing import Any

import httpx
import psycopg
import pytest

from bench import MakeBench
from pipelines.pipeline_schema import connect_admin
from played.dedupe import BASE, CONFIG, HOUR, NOW, PARTITIONS, SPEC, Event, Process, event, logged, totals
from tidemill_contract.resource.spec import PipelineSpec
from tidemill_contract.runtime import PipelineConfig
from tidemill_contract.tables.inputs import dedupe
from tidemill_processor.database import Database
from waiting import eventually

pytestmark = pytest.mark.integration


@pytest.fixture
def schema(make_schema: Callable[[PipelineConfig], tuple[psycopg.Connection[Any], Database]]) -> Any:
    """Create the pipeline's tables. Return the administrator's connection and the quoted name of the schema."""
    connection, database = make_schema(CONFIG)
    return connection, database.schema


def test_copies_within_the_window_are_left_out(schema: Any) -> None:
    """The copies are in the same batch, in later batches, in other partitions, and after a restart.

    Events without an id, filtered events, and events outside of the window are no copies.
    """
    connection, name = schema
    logs = logged(
        [
            event("a", 0),
            event("a", 0),
            event("b", 0),
            event(None, 0),
            event(None, 0),
            event("", 0),
            event("x" * 3000, 0),
        ],
        [event("a", 0), event("b", HOUR), event("c", 0, 13), event("c", 0, 2), event("x" * 3000, 0), event("", 1)],
        [event("b", HOUR + 1), event('"\\,{}', 0), event('"\\,{}', 1), event("a", 0)],
    )
    process = Process(connection)
    process.take(logs, {0: 2})
    assert totals(connection, name) == (1, 1)
    process.take(logs, {0: 9}, dies=True)
    process.take(logs, {0: 9})
    process.start()
    process.take(logs, {1: 9})
    # b at 1 h is a copy of b at 0, because the window includes its ends. The first c is filtered, so the second counts.
    assert totals(connection, name) == (7, 8)
    process.take(logs, {2: 9})
    # b at 1 h and 1 ms is a new event, because the event b at 1 h did not count.
    assert totals(connection, name) == (9, 10)
    assert connection.execute(f"SELECT sum(n) FROM (SELECT _count n FROM {name}.hourly_v1) h").fetchone() == (9,)
    assert connection.execute(f"SELECT count(*) FROM {name}._events").fetchone() == (9,)
    assert connection.execute(f"SELECT count(*) FROM {name}._dead_letters").fetchone() == (0,)
    query = f"SELECT partition, consumed, filtered, duplicates FROM {name}._offsets ORDER BY 1"
    assert connection.execute(query).fetchall() == [(0, 7, 0, 1), (1, 6, 1, 4), (2, 4, 0, 2)]


def test_a_copy_that_another_processor_counts_at_the_same_time_is_left_out(servers: Any, schema: Any) -> None:
    """Two processors read copies of a new id. The second processor waits for the lock, and then leaves its copy out."""
    connection, name = schema
    logs = logged([event("a", 0), event("b", 0, 5)], [event("a", HOUR // 2), event("c", 0, 7)])
    with connect_admin(servers) as second:
        first, other = Process(connection), Process(second)
        with connection.transaction():
            connection.execute(dedupe.lock(CONFIG.schema_name), ("live",))
            thread = threading.Thread(target=other.take, args=(logs, {1: 2}))
            thread.start()
            waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
            eventually(
                lambda: connection.execute(waiting).fetchone() == (1,), what="the other processor waits for the lock"
            )
            first.take(logs, {0: 2})
        thread.join(30)
    assert totals(connection, name) == (3, 13)
    query = f"SELECT partition, consumed, duplicates FROM {name}._offsets ORDER BY 1"
    assert connection.execute(query).fetchall() == [(0, 2, 0), (1, 2, 1), (2, 0, 0)]


def test_concurrent_processors_count_each_id_once(servers: Any, schema: Any) -> None:
    """Each partition has the same ids in another order. Many small batches cause no deadlock."""
    connection, name = schema
    rnd = random.Random(5)
    ids = [f"id-{n}" for n in range(1_500)]
    logs = logged(*([event(id_, rnd.randrange(1_000)) for id_ in rnd.sample(ids, len(ids))] for _ in range(PARTITIONS)))
    errors: list[BaseException] = []

    def run(partition: int) -> None:
        try:
            with connect_admin(servers) as own_connection:
                process = Process(own_connection)
                while process.take(logs, {partition: 100}) is not None:
                    pass
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(p,)) for p in range(PARTITIONS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert errors == []
    assert totals(connection, name) == (len(ids), len(ids))
    assert connection.execute(f"SELECT sum(duplicates) FROM {name}._offsets").fetchone() == (2 * len(ids),)


def test_ids_are_deleted_after_the_watermark_has_passed_their_window(schema: Any) -> None:
    """The id of a late event is kept as long as the id of the newest event, because a copy is late too."""
    connection, name = schema
    logs = logged(
        [event(None, 5 * HOUR)] * 3 + [event("new", 5 * HOUR), event("old", 0)],
        [event("old", 0), event("new", 5 * HOUR), event("x", 9 * HOUR)],
    )
    process = Process(connection)
    process.take(logs, {0: 5})
    cleaner = process.event_id_cleaner()

    def left_at(hours: int) -> int:
        connection.execute(f"UPDATE {name}._readers SET watermark = %s", (BASE + hours * HOUR,))
        cleaner.run(connection)
        return int(connection.execute(f"SELECT count(*) FROM {name}._dedupe").fetchone()[0])  # type: ignore[index]

    assert left_at(6) == 2
    process.take(logs, {1: 2})
    assert totals(connection, name) == (5, 5)
    assert left_at(7) == 0
    connection.execute(
        f"INSERT INTO {name}._dedupe VALUES ('replay-gone-1', 'id', 'a', 0, {NOW}), ('live', 'other', 'a', 0, {NOW})"
    )
    assert left_at(7) == 1, "the ids of a deleted replay are deleted"


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        # With ids of elements, all elements of the first record count, and c of the second record.
        ("lines[].id", (4, 1 + 2 + 4 + 5)),
        # With ids of records, all elements of the first record count, and index 3 of the second record.
        ("id", (4, 1 + 2 + 4 + 5)),
    ],
)
def test_copies_of_array_elements_are_left_out(make_schema: Any, path: str, expected: tuple[int, int]) -> None:
    """Elements are compared by their ids, or by the id of the record and the index of the element."""
    document = SPEC.model_dump(by_alias=True, exclude_unset=True)
    id_, ts, v = document["source"]["fields"]
    document["source"]["fields"] = [id_ | {"path": path}, ts, v | {"path": "lines[].v"}]
    config = CONFIG.model_copy(update={"name": "dedupe-array", "spec": PipelineSpec.model_validate(document)})
    connection, database = make_schema(config)
    process = Process(connection, config=config)

    def record(*lines: tuple[str | None, int]) -> Event:
        return {"id": "r", "ts": BASE, "lines": [{"id": id_, "v": v} for id_, v in lines]}

    first, second = record(("a", 1), ("b", 2), (None, 4)), record(("b", 7), ("a", 8), ("b", 13), ("c", 5))
    process.take(logged([first], [second]), {0: 1})
    assert totals(connection, database.schema) == (3, 7)
    process.take(logged([first], [second]), {1: 1})
    assert totals(connection, database.schema) == expected
    process.take(logged([first, first], [second, second]), {0: 1, 1: 1})
    # An element without an id counts again.
    repeated = (1, 4) if path == "lines[].id" else (0, 0)
    assert totals(connection, database.schema) == (expected[0] + repeated[0], expected[1] + repeated[1])


def test_ids_of_a_partition_that_was_idle_are_kept(schema: Any) -> None:
    """The watermark is hours ahead of the partition, to which a buffered upload is sent twice."""
    connection, name = schema
    upload = [event("one", 4 * HOUR), event("two", 5 * HOUR)]
    logs = logged([event(None, 0), event(None, 0), event(None, 12 * HOUR)], [event(None, 0)] * 3 + upload + upload)
    process = Process(connection)
    process.take(logs, {0: 3, 1: 3})
    connection.execute(f"UPDATE {name}._readers SET watermark = %s", (BASE + 11 * HOUR,))  # Partition 1 is idle.
    cleaner = process.event_id_cleaner()
    process.take(logs, {1: 2})
    cleaner.run(connection)
    process.take(logs, {1: 2})
    assert totals(connection, name) == (8, 8)


def test_an_event_far_ahead_does_not_extend_the_life_of_other_ids(schema: Any) -> None:
    """The time of a single event is not accepted as the progress of its partition."""
    connection, name = schema
    logs = logged([event(f"id-{n}", n) for n in range(9)] + [event("ahead", 24 * HOUR + HOUR // 2)])
    process = Process(connection)
    process.take(logs, {0: 10})
    cleaner = process.event_id_cleaner()
    connection.execute(f"UPDATE {name}._readers SET watermark = %s", (BASE + 2 * HOUR,))
    cleaner.run(connection)
    assert connection.execute(f"SELECT id FROM {name}._dedupe").fetchall() == [("ahead",)]


def test_copies_are_left_out_although_a_processor_is_killed(make_bench: MakeBench) -> None:
    """Two processors read a topic that has each event in all partitions. One processor is killed."""
    bench = make_bench(CONFIG.model_copy(update={"name": "dedupe-kills"}))
    victim = bench.start(0)
    bench.start(1)
    number = 0

    def send(rows: int) -> None:
        nonlocal number
        values = [json.dumps(event(f"id-{n}", n % HOUR)).encode() for n in range(number, number + rows)]
        number += rows
        for partition in range(PARTITIONS):
            bench.produce(values, partition=partition)

    send(3_000)
    bench.eventually(lambda: bench.consumed() >= 1_000, seconds=60, what="1,000 records are consumed")
    send(3_000)
    victim.kill()
    victim.wait()
    send(3_000)
    bench.start(2)
    send(3_000)
    bench.await_consumed(PARTITIONS * number, seconds=120)
    assert bench.query("SELECT sum(_count)::bigint, sum(_sum_v)::bigint FROM {s}.daily_v1") == [(number, number)]
    assert bench.query("SELECT count(*) FROM {s}._events") == [(number,)]
    assert bench.query("SELECT sum(duplicates) FROM {s}._offsets") == [((PARTITIONS - 1) * number,)]
    assert "tidemill_duplicates_total" in bench.metrics()
    bench.start(module="tidemill_api")
    with httpx.Client(base_url=f"http://127.0.0.1:{bench.ports[-1]}", timeout=30) as client:
        bench.eventually(lambda: bench.health().get("status") == "healthy", what="the API is healthy")
        progress = client.get("/v1/pipelines/dedupe-kills").json()["progress"]
    assert (progress["consumed"], progress["duplicates"]) == (PARTITIONS * number, (PARTITIONS - 1) * number)
    assert sum(partition["duplicates"] for partition in progress["partitions"]) == progress["duplicates"]
