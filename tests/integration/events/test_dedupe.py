"""`source.dedupe` on real servers: copies of events count once, across batches, partitions, processes and a replay."""

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
from kafka_records import RawRecord
from pipelines.pipeline_schema import connect_admin
from played.processor import PlayedProcessor, begin_replay, make_replay_tables
from tidemill_contract.resource.spec import PipelineSpec
from tidemill_contract.runtime import AggregationRef, PipelineConfig
from tidemill_contract.tables.inputs import dedupe
from tidemill_processor import replay
from tidemill_processor.database import Database
from tidemill_processor.keeper.forgetting import Forgetter
from tidemill_processor.transaction import Committed, Superseded
from waiting import eventually

pytestmark = pytest.mark.integration

BASE = 1_700_000_000_000 // 3_600_000 * 3_600_000
NOW = BASE + 86_400_000
HOUR = 3_600_000
PARTITIONS = 3
SPEC = PipelineSpec.model_validate(
    {
        "source": {
            "topic": {"partitions": PARTITIONS},
            "fields": [
                {"name": "id", "type": "string"},
                {"name": "ts", "type": "timestamp", "required": True},
                {"name": "v", "type": "integer"},
            ],
            "eventTime": {"field": "ts", "idleTimeout": "10m", "maxDisorder": "1m"},
            "dedupe": {"field": "id", "window": "1h"},
        },
        "transform": {"filter": "v <> 13"},
        "aggregations": [
            {
                "name": "hourly",
                "window": {"type": "tumbling", "size": "1h"},
                "metrics": [{"name": "n", "function": "count"}, {"name": "total", "function": "sum", "field": "v"}],
            },
            {
                "name": "daily",
                "window": {"type": "tumbling", "size": "1d"},
                "metrics": [{"name": "n", "function": "count"}, {"name": "total", "function": "sum", "field": "v"}],
            },
        ],
        "events": {"store": True},
        "processor": {"flushInterval": "50ms"},
        "auth": {"required": False},
    }
)
CONFIG = PipelineConfig(
    namespace="tests", name="dedupe", generation=1, spec=SPEC,
    aggregations=tuple(AggregationRef(name=a.name) for a in SPEC.aggregations),
)  # fmt: skip
READER = "replay-x-1"

Event = dict[str, Any]
Logs = dict[int, list[RawRecord]]


def event(id_: str | None, at: int, v: int = 1) -> Event:
    return {"id": id_, "ts": BASE + at, "v": v}


def logged(*partitions: list[Event]) -> Logs:
    """The events of each partition as records."""
    return {
        p: [RawRecord(p, offset, json.dumps(one).encode()) for offset, one in enumerate(events)]
        for p, events in enumerate([*partitions, *[[]] * (PARTITIONS - len(partitions))])
    }


class Process(PlayedProcessor):
    """A processor of the pipeline."""

    def __init__(
        self, connection: psycopg.Connection[Any], reader: str = "live", config: PipelineConfig = CONFIG
    ) -> None:
        super().__init__(connection, config, reader)

    def take(self, logs: Logs, sizes: dict[int, int], *, dies: bool = False) -> Committed | None:
        """Commit the next records of partitions, at most `sizes` of each."""
        taken = [
            record
            for p, position in self.positions.items()
            for record in logs[p][position.next_offset : position.next_offset + sizes.get(p, 0)]
        ]
        return self.step(taken, NOW, dies=dies)

    def forgetter(self) -> Forgetter:
        """What deletes the pipeline's expired ids."""
        forgetter = Forgetter.of(self.connection, self.database, CONFIG)
        assert forgetter is not None
        return forgetter


@pytest.fixture
def schema(make_schema: Callable[[PipelineConfig], tuple[psycopg.Connection[Any], Database]]) -> Any:
    """The administrator's connection, and the quoted schema."""
    connection, database = make_schema(CONFIG)
    return connection, database.schema


def totals(connection: psycopg.Connection[Any], schema: str, table: str = "daily_v1") -> tuple[int, int]:
    """The number of events, and their sum."""
    query = f"SELECT coalesce(sum(_count), 0)::bigint, coalesce(sum(_sum_v), 0)::bigint FROM {schema}.{table}"
    return tuple(connection.execute(query).fetchone() or ())  # type: ignore[return-value]


def test_what_counts(schema: Any) -> None:
    """Copies in a batch, in later batches, in other partitions, after a restart; and what is no copy."""
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
    # b at 1h is a copy of b at 0 (the window includes its ends), the filtered c is none.
    assert totals(connection, name) == (7, 8)
    process.take(logs, {2: 9})
    # b at 1h and 1 ms is a new event: b at 1h did not count.
    assert totals(connection, name) == (9, 10)
    assert connection.execute(f"SELECT sum(n) FROM (SELECT _count n FROM {name}.hourly_v1) h").fetchone() == (9,)
    assert connection.execute(f"SELECT count(*) FROM {name}._events").fetchone() == (9,)
    assert connection.execute(f"SELECT count(*) FROM {name}._dead_letters").fetchone() == (0,)
    query = f"SELECT partition, consumed, filtered, duplicates FROM {name}._offsets ORDER BY 1"
    assert connection.execute(query).fetchall() == [(0, 7, 0, 1), (1, 6, 1, 4), (2, 4, 0, 2)]


def test_a_copy_that_another_processor_counts_meanwhile(servers: Any, schema: Any) -> None:
    """Both have found the id to be new. The second one waits for the lock, and then leaves its copies out."""
    connection, name = schema
    logs = logged([event("a", 0), event("b", 0, 5)], [event("a", HOUR // 2), event("c", 0, 7)])
    with connect_admin(servers) as second:
        first, other = Process(connection), Process(second)
        with connection.transaction():
            connection.execute(dedupe.lock(CONFIG.schema_name), ("live",))
            thread = threading.Thread(target=other.take, args=(logs, {1: 2}))
            thread.start()
            waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
            eventually(lambda: connection.execute(waiting).fetchone() == (1,), what="the other one waits")
            first.take(logs, {0: 2})
        thread.join(30)
    assert totals(connection, name) == (3, 13)
    query = f"SELECT partition, consumed, duplicates FROM {name}._offsets ORDER BY 1"
    assert connection.execute(query).fetchall() == [(0, 2, 0), (1, 2, 1), (2, 0, 0)]


def test_two_processors_at_once_count_each_id_once(servers: Any, schema: Any) -> None:
    """The same ids in another order in two partitions, in many small batches: no deadlock, and nothing twice."""
    connection, name = schema
    rnd = random.Random(5)
    ids = [f"id-{n}" for n in range(1_500)]
    logs = logged(*([event(id_, rnd.randrange(1_000)) for id_ in rnd.sample(ids, len(ids))] for _ in range(PARTITIONS)))
    errors: list[BaseException] = []

    def run(partition: int) -> None:
        try:
            with connect_admin(servers) as own:
                process = Process(own)
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


def test_ids_are_forgotten_once_the_watermark_has_passed(schema: Any) -> None:
    """A late event is remembered as long as the newest one, because its copy is as late."""
    connection, name = schema
    logs = logged(
        [event(None, 5 * HOUR)] * 3 + [event("new", 5 * HOUR), event("old", 0)],
        [event("old", 0), event("new", 5 * HOUR), event("x", 9 * HOUR)],
    )
    process = Process(connection)
    process.take(logs, {0: 5})
    forgetter = process.forgetter()

    def left_at(hours: int) -> int:
        connection.execute(f"UPDATE {name}._readers SET watermark = %s", (BASE + hours * HOUR,))
        forgetter.run(connection)
        return int(connection.execute(f"SELECT count(*) FROM {name}._dedupe").fetchone()[0])  # type: ignore[index]

    assert left_at(6) == 2
    process.take(logs, {1: 2})
    assert totals(connection, name) == (5, 5)
    assert left_at(7) == 0
    connection.execute(
        f"INSERT INTO {name}._dedupe VALUES ('replay-gone-1', 'id', 'a', 0, {NOW}), ('live', 'other', 'a', 0, {NOW})"
    )
    assert left_at(7) == 1, "the memory of a replay that is gone goes with it"


@pytest.mark.parametrize(
    ("path", "wanted"),
    [
        # Element ids: all elements of the first record, and c of the second.
        ("lines[].id", (4, 1 + 2 + 4 + 5)),
        # Record ids: all elements of the first record, and the fourth of the second: index 3 is new.
        ("id", (4, 1 + 2 + 4 + 5)),
    ],
)
def test_elements_of_an_array(make_schema: Any, path: str, wanted: tuple[int, int]) -> None:
    """Elements are compared by their ids, or by the record's id and their index."""
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
    assert totals(connection, database.schema) == wanted
    process.take(logged([first, first], [second, second]), {0: 1, 1: 1})
    again = (1, 4) if path == "lines[].id" else (0, 0)  # the element without an id counts again
    assert totals(connection, database.schema) == (wanted[0] + again[0], wanted[1] + again[1])


def test_ids_of_an_idle_partition_that_comes_back_are_remembered(schema: Any) -> None:
    """The watermark is hours ahead of the partition, in which a buffered upload is sent twice."""
    connection, name = schema
    upload = [event("one", 4 * HOUR), event("two", 5 * HOUR)]
    logs = logged([event(None, 0), event(None, 0), event(None, 12 * HOUR)], [event(None, 0)] * 3 + upload + upload)
    process = Process(connection)
    process.take(logs, {0: 3, 1: 3})
    connection.execute(f"UPDATE {name}._readers SET watermark = %s", (BASE + 11 * HOUR,))  # partition 1 is idle
    forgetter = process.forgetter()
    process.take(logs, {1: 2})
    forgetter.run(connection)
    process.take(logs, {1: 2})
    assert totals(connection, name) == (8, 8)


def test_a_single_event_far_ahead_keeps_only_its_own_id(schema: Any) -> None:
    """Its time is not accepted as the partition's progress, so the other ids of its batch expire as usual."""
    connection, name = schema
    logs = logged([event(f"id-{n}", n) for n in range(9)] + [event("ahead", 24 * HOUR + HOUR // 2)])
    process = Process(connection)
    process.take(logs, {0: 10})
    forgetter = process.forgetter()
    connection.execute(f"UPDATE {name}._readers SET watermark = %s", (BASE + 2 * HOUR,))
    forgetter.run(connection)
    assert connection.execute(f"SELECT id FROM {name}._dedupe").fetchall() == [("ahead",)]


@pytest.fixture
def replayed(schema: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The tables of a second version, which a replay fills."""
    monkeypatch.setattr(replay, "ASK_SECONDS", 0.0)
    connection, name = schema
    rows = make_replay_tables(connection, name, CONFIG, READER)
    begin_replay(connection, name, rows, READER)
    return connection, name


def test_copies_are_duplicates_after_the_switch_to_a_replay(replayed: Any) -> None:
    """The live processors counted before dedupe was added, so only the replay has stored these ids."""
    connection, name = replayed
    logs = logged([event(f"id-{n}", n) for n in range(50)] * 2)
    live, filling = Process(connection), Process(connection, READER)
    live.take(logs, {0: 50})
    connection.execute(f"DELETE FROM {name}._dedupe WHERE reader = 'live'")
    filling.take(logs, {0: 50})
    assert totals(connection, name, "daily_v2") == (50, 50)
    # As the operator's _ensure_aggregations and switch do.
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
    """The same annotation gives the same reader. The ids of the first attempt may still be stored then."""
    connection, name = replayed
    logs = logged([event(f"id-{n}", n, 1) for n in range(50)])
    live, filling = Process(connection), Process(connection, READER)
    live.take(logs, {0: 50})
    filling.take(logs, {0: 30})
    # The operator cancels the replay (end_replays), and the request comes again before the keeper has deleted the ids.
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
def test_a_replay_counts_the_same(replayed: Any, seed: int) -> None:
    """Live processors and a replay die, meet and hand over in any order. Both versions count each id once."""
    connection, name = replayed
    rnd = random.Random(seed)
    events = [event(f"id-{n}", rnd.randrange(8 * HOUR), rnd.randint(1, 9)) for n in range(80)]
    sent = [one for one in events for _ in range(rnd.choice([1, 1, 2, 4]))]
    rnd.shuffle(sent)
    logs = logged(*(sent[p::PARTITIONS] for p in range(PARTITIONS)))
    live, filling, other = Process(connection), Process(connection, READER), Process(connection, READER)
    forgetter = live.forgetter()
    connection.execute(f"UPDATE {name}._readers SET watermark = %s WHERE reader = 'live'", (BASE,))
    for _ in range(400):
        process = rnd.choice([live, filling, filling, other])
        action = rnd.choice(["step"] * 5 + ["dies", "starts", "meet", "forget"])
        if action == "meet" and process is not live:
            process.meet()
        elif action == "starts":
            process.start()
        elif action == "forget":
            forgetter.run(connection)
        else:
            sizes = {p: rnd.randrange(9) for p in range(PARTITIONS)}
            process.take(logs, sizes, dies=action == "dies")
    while live.take(logs, dict.fromkeys(logs, 50)) is not None:
        pass
    while filling.take(logs, dict.fromkeys(logs, 50)) is not None:
        pass
    filling.meet()
    assert filling.positions == {}, "every partition is handed over"
    wanted = len(events), sum(one["v"] for one in events)
    assert totals(connection, name, "daily_v1") == wanted
    assert totals(connection, name, "daily_v2") == wanted
    assert totals(connection, name, "hourly_v2") == wanted
    assert connection.execute(f"SELECT count(*) FROM {name}._events").fetchone() == (len(events),)


def test_copies_count_once_across_kills(make_bench: MakeBench) -> None:
    """Two processors of one topic; each event is in all partitions; one processor is killed."""
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
    bench.eventually(lambda: bench.consumed() >= 1_000, seconds=60, what="some records consumed")
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
