"""Tests of detectors on single events: their anomalies equal those of a naive model.

Most tests play the processor's loop on a real Postgres, with crashes, competing replicas and forgotten groups. One
test runs real processors and a real API on a real Kafka, and kills a processor.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx
import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bench import Bench, MakeBench
from kafka_records import KafkaRecord
from tidemill_contract.resource.spec import AnomalySpec, PipelineSpec
from tidemill_contract.runtime import AggregationRef, PipelineConfig, WorkloadSettings
from tidemill_contract.times import rfc3339_ms
from tidemill_processor.batches.reader import BatchReader
from tidemill_processor.database import Database
from tidemill_processor.detect import event_anomalies
from tidemill_processor.detect.detectors import State, Verdict, judge
from tidemill_processor.transaction import Committer, Fenced, Position, is_refusal

pytestmark = pytest.mark.integration

BASE = 1_700_000_000_000 // 60_000 * 60_000
PARTITIONS = 3
SPEC: dict[str, Any] = {
    "source": {
        "topic": {"partitions": PARTITIONS},
        "fields": [
            {"name": "ts", "type": "timestamp", "required": True},
            {"name": "k", "type": "string"},
            {"name": "v", "type": "number"},
            {"name": "i", "type": "integer"},
        ],
        "eventTime": {"field": "ts", "idleTimeout": "10m"},
    },
    "transform": {"filter": "i IS NULL OR i <> 13", "derive": [{"name": "ratio", "expression": "v / i"}]},
    "aggregations": [
        {
            "name": "by_k",
            "groupBy": ["k"],
            "window": {"type": "tumbling", "size": "1m"},
            "metrics": [{"name": "n", "function": "count"}],
        }
    ],
    "anomalies": [
        {
            "name": "by_key",
            "field": "v",
            "groupBy": ["k"],
            "detector": {"type": "zscore", "threshold": 2, "warmup": 3, "cooldown": "0s"},
        },
        {"name": "ratios", "field": "ratio", "detector": {"type": "mad", "threshold": 3, "warmup": 4}},
        {
            "name": "pairs",
            "field": "i",
            "groupBy": ["k", "v"],
            "detector": {"type": "ewma", "threshold": 1, "warmup": 2, "cooldown": "5s"},
        },
    ],
    "processor": {"flushInterval": "100ms"},
    "auth": {"required": False},
    "api": {"cacheTtl": "0s"},
}


def config(name: str, spec: dict[str, Any]) -> PipelineConfig:
    return PipelineConfig(
        namespace="tests",
        name=name,
        generation=1,
        spec=PipelineSpec.model_validate(spec),
        aggregations=(AggregationRef(name="by_k"),),
    )


CONFIG = config("singles", SPEC)
Anomalies = dict[tuple[str, int, int], tuple[str, int, Verdict]]
"""The group, the time and the verdict, by rule, partition and offset."""


@dataclass(frozen=True)
class Record(KafkaRecord):
    """A record of this pipeline."""

    p: int
    o: int
    members: dict[str, Any]

    def value(self) -> bytes:
        return json.dumps(self.members).encode()


def naive(
    rules: list[AnomalySpec], logs: dict[int, list[Record]]
) -> tuple[Anomalies, dict[tuple[str, int, str], State]]:
    """Return the anomalies and the final states of a reader that reads each partition without an interruption."""
    anomalies: Anomalies = {}
    states: dict[tuple[str, int, str], State] = {}
    for rule in rules:
        for p, log in logs.items():
            groups: list[tuple[str, State]] = []
            for record in log:
                members = record.members
                i, v = members.get("i"), members.get("v")
                ratio = v / i if v is not None and i else None
                value = {"v": v, "i": i, "ratio": ratio}[rule.watched]
                if i == 13 or value is None:
                    continue
                group = json.dumps({name: members.get(name) for name in rule.group_by}, sort_keys=True)
                state = next((s for g, s in groups if g == group), {})
                groups = [(g, s) for g, s in groups if g != group][-(event_anomalies.MAX_GROUPS - 1) :]
                verdict, after = judge(rule.detector, state, members["ts"], float(value))
                groups.append((group, after))
                if verdict is not None:
                    anomalies[rule.name, p, record.o] = (group, members["ts"], verdict)
            states |= {(rule.name, p, group): state for group, state in groups}
    return anomalies, states


def stored(
    query: Callable[[str], list[tuple[Any, ...]]],
) -> tuple[Anomalies, dict[tuple[str, int, str], State]]:
    """Return the anomalies and the states that are stored in Postgres."""
    rows = query(
        'SELECT anomaly, partition, "offset", group_key, (extract(epoch FROM window_start) * 1000)::bigint, value,'
        " score, severity, expected, lower, upper FROM {s}._anomalies"
    )
    anomalies = {
        (rule, p, o): (json.dumps(group, sort_keys=True), at, Verdict(*figures))
        for rule, p, o, group, at, *figures in rows
    }
    assert len(anomalies) == len(rows)
    rows = query("SELECT anomaly, -1 - aggregation_id, group_key, (state - 'field')::text FROM {s}._detectors")
    return anomalies, {(rule, p, group): json.loads(state, parse_int=float) for rule, p, group, state in rows}


def draw_events(rnd: random.Random, number: int) -> dict[int, list[Record]]:
    """Return events of few keys, with many equal times, out of order. About one value in ten is an outlier."""
    logs: dict[int, list[Record]] = {p: [] for p in range(PARTITIONS)}
    for _ in range(number):
        members: dict[str, Any] = {"ts": BASE + rnd.randrange(0, 60) * 1_000, "k": rnd.choice(["a", "b", None, "ü\n"])}
        if rnd.random() < 0.9:
            members["v"] = rnd.choice([0.0, 1.5, 2.0, 3.25]) + rnd.choice([0.0] * 9 + [1e3])
        if rnd.random() < 0.9:
            members["i"] = rnd.choice([0, 1, 2, 3, 13, 2**62])
        p = rnd.randrange(PARTITIONS)
        logs[p].append(Record(p, len(logs[p]), members))
    return logs


class Process:
    """A processor whose loop the test plays."""

    def __init__(self, connection: psycopg.Connection[Any], database: Database) -> None:
        self.connection, self.database = connection, database
        self.reader = BatchReader(CONFIG.spec)
        self.start()

    def start(self) -> None:
        stores = self.database.aggregations(self.connection)
        self.committer = Committer(self.connection, self.database, stores, CONFIG)
        self.positions: dict[int, Position] = {}
        self.seek(range(PARTITIONS))

    def seek(self, partitions: Any) -> None:
        rows = self.connection.execute(f"SELECT partition, next_offset, epoch FROM {self.database.schema}._offsets")
        self.positions |= {p: Position(offset, epoch) for p, offset, epoch in rows if p in partitions}

    def step(self, logs: dict[int, list[Record]], chosen: list[int], size: int, *, how: str) -> None:
        """Commit one batch of the chosen partitions from the positions of this process.

        Partitions whose positions another process has moved are left out. `how` says what happens to the commit: ""
        for a success, "dies" for a restart, "rolled back", or "refused" for an attempt before the commit.
        """
        read = [log[self.positions[p].next_offset :][:size] for p, log in logs.items() if p in chosen]
        batch = self.reader.read([record for records in read for record in records], BASE + 86_400_000)
        while batch.next_offsets:
            try:
                if how == "refused":
                    self.committer.dry_run(batch, self.positions)
                with self.connection.transaction() as transaction:
                    committed = self.committer.commit(batch, self.positions)
                    if how == "dies":
                        raise psycopg.Rollback(transaction)
            except Fenced as fenced:
                self.seek(fenced.partitions)
                batch = batch.without(fenced.partitions)
            else:
                if how == "dies":
                    self.start()
                elif how != "rolled back":
                    self.positions |= committed.positions
                return


STEP = st.tuples(
    st.integers(0, 1),
    st.lists(st.integers(0, PARTITIONS - 1), min_size=1, unique=True),
    st.integers(1, 40),
    st.sampled_from(["", "", "", "dies", "rolled back", "refused"]),
)


@pytest.fixture
def stage(make_schema: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    # With these limits, the test's processes forget groups and load states from Postgres again.
    monkeypatch.setattr(event_anomalies, "MAX_GROUPS", 5)
    monkeypatch.setattr(event_anomalies, "MAX_CACHED_STATES", 18)
    return make_schema(CONFIG)


def wipe(connection: psycopg.Connection[Any], schema: str) -> None:
    connection.execute(f"TRUNCATE {schema}.by_k_v1, {schema}._detectors, {schema}._anomalies")
    connection.execute(
        f"UPDATE {schema}._offsets SET next_offset = 0, epoch = 0, max_event_time = NULL, suspects = '{{}}'"
    )


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 300), st.lists(STEP, max_size=16), st.integers(0, 10**9))
def test_verdicts_equal_a_naive_model(stage: Any, number: int, script: list[Any], seed: int) -> None:
    """Two replicas on the same partitions crash, roll back and fence each other. Each event is judged once."""
    connection, database = stage
    wipe(connection, database.schema)
    logs = draw_events(random.Random(seed), number)
    processes = [Process(connection, database) for _ in range(2)]
    for who, chosen, size, how in script:
        processes[who].step(logs, chosen, size, how=how)
    for process in processes:
        process.seek(range(PARTITIONS))
        process.step(logs, list(range(PARTITIONS)), 1_000, how="")
    anomalies, states = stored(lambda text: connection.execute(text.replace("{s}", database.schema)).fetchall())
    assert (anomalies, states) == naive(CONFIG.spec.anomalies, logs)


def test_a_replay_reports_no_anomalies(stage: Any) -> None:
    connection, database = stage
    wipe(connection, database.schema)
    replay = Database(WorkloadSettings(reader="replay-x-1"), CONFIG, 10)
    batch = BatchReader(CONFIG.spec).read(draw_events(random.Random(1), 50)[0], BASE + 86_400_000)
    judged = event_anomalies.EventJudge(replay, CONFIG).judge(connection, batch, {0: Position(0, 0)}, {0: 0})
    assert judged == event_anomalies.JudgedBatch()


def test_a_rule_with_another_field_starts_with_an_empty_state(stage: Any) -> None:
    connection, database = stage
    wipe(connection, database.schema)
    logs = draw_events(random.Random(1), 50)
    Process(connection, database).step(logs, [0], 100, how="")
    again = config("singles", {**SPEC, "anomalies": [{**SPEC["anomalies"][0], "field": "i"}]})
    position = Position(len(logs[0]), 0)
    event = Record(0, position.next_offset, {"ts": BASE, "k": "a", "i": 5})
    batch = BatchReader(again.spec).read([event], BASE + 86_400_000)
    judged = event_anomalies.EventJudge(database, again).judge(connection, batch, {0: position}, {0: 0})
    assert [changed.state["n"] for changed in judged.changed] == [1]


def test_a_group_that_postgres_cannot_store_is_an_error_about_a_value(make_schema: Callable[..., Any]) -> None:
    """After such an error, the processor finds and refuses the event, and counts the other events."""
    fields = [{"name": f"k{n}", "type": "string"} for n in range(8)]
    rule = {"name": "wide", "field": "v", "groupBy": [field["name"] for field in fields]}
    source = {**SPEC["source"], "fields": [*SPEC["source"]["fields"], *fields]}
    wide = config("wide", {**SPEC, "source": source, "anomalies": [rule]})
    connection, database = make_schema(wide)
    generator = random.Random(1)
    keys = {f["name"]: "".join(chr(generator.randrange(0x100, 0xD000)) for _ in range(340)) for f in fields}
    batch = BatchReader(wide.spec).read([Record(0, 0, {"ts": BASE, "v": 1.0, **keys})], BASE + 86_400_000)
    committer = Committer(connection, database, database.aggregations(connection), wide)
    with pytest.raises(psycopg.Error) as refused:
        committer.dry_run(batch, {0: Position(0, 0)})
    assert is_refusal(refused.value)


LIVE = config(
    "singly",
    {
        **SPEC,
        "anomalies": [
            {"name": "any", "field": "v", "detector": {"cooldown": "0s"}},
            {"name": "by_key", "field": "v", "groupBy": ["k"], "detector": {"type": "mad", "threshold": 6}},
        ],
    },
)


def readings(rnd: random.Random, p: int, first: int, number: int) -> list[Record]:
    """Return events of a partition. Every fiftieth value is an outlier."""
    return [
        Record(
            p, o, {"ts": BASE + o * 250, "k": rnd.choice("ab"), "v": rnd.gauss(20, 2) + (200 if o % 50 == 49 else 0)}
        )
        for o in range(first, first + number)
    ]


@pytest.mark.slow
def test_a_killed_and_replaced_processor_does_not_change_the_anomalies(
    make_bench: MakeBench, documented: Callable[..., None]
) -> None:
    """The stored anomalies, the published records and the answers of the API equal the naive model."""
    running = make_bench(LIVE)
    rnd = random.Random(5)
    logs: dict[int, list[Record]] = {p: [] for p in range(PARTITIONS)}

    def produce(number: int) -> None:
        for p, log in logs.items():
            new = readings(rnd, p, len(log), number)
            log += new
            running.produce([record.value() for record in new], partition=p)

    victim = running.start(0)
    running.start(1)
    produce(300)
    running.await_consumed(300 * PARTITIONS)
    produce(300)
    victim.kill()
    victim.wait()
    produce(300)
    running.start(2)
    running.await_consumed(900 * PARTITIONS, seconds=90)
    produce(100)
    running.await_consumed(1_000 * PARTITIONS)
    anomalies, states = stored(running.query)
    assert (anomalies, states) == naive(LIVE.spec.anomalies, logs)
    assert {rule for rule, _, _ in anomalies} == {"any", "by_key"}
    assert len(anomalies) >= 40

    records = read_by_id(running, len(anomalies))
    assert records.keys() == {f"{rule}/0/{p}/{o}" for rule, p, o in anomalies}
    for (rule, p, o), (group, at, verdict) in anomalies.items():
        assert records[f"{rule}/0/{p}/{o}"] == {
            "anomaly": rule, "aggregation": "", "version": 0, "metric": "v", "group": json.loads(group),
            "window_start": rfc3339_ms(at), "window_end": rfc3339_ms(at), "value": verdict.value,
            "score": verdict.score, "expected": verdict.expected, "lower": verdict.lower, "upper": verdict.upper,
            "severity": verdict.severity, "revision": 0, "partition": p, "offset": o,
        }  # fmt: skip
        documented("anomalies", records[f"{rule}/0/{p}/{o}"])

    running.start(module="tidemill_api")
    running.eventually(running.health, what="the API answers")
    url = f"http://127.0.0.1:{running.ports[-1]}/v1/pipelines/{LIVE.name}/anomalies"
    answer = httpx.get(url, params={"limit": "1000", "anomaly": "by_key", "partition": "1"}, timeout=20).json()
    shown = {(row["offset"], row["window_start"], row["value"]) for row in answer["data"]}
    assert shown == {
        (o, rfc3339_ms(at), verdict.value)
        for (rule, p, o), (_, at, verdict) in anomalies.items()
        if (rule, p) == ("by_key", 1)
    }


def read_by_id(bench: Bench, number: int) -> dict[str, Any]:
    """Read the topic of anomalies until it has this number of ids, and return the records by id.

    A record that is published again has the same id.
    """
    records: dict[str, Any] = {}
    deadline = time.monotonic() + 60
    with bench.reading("anomalies") as consumer:
        while len(records) < number and time.monotonic() < deadline:
            for message in consumer.consume(500, 0.5):
                if message.error() is None:
                    records[dict(message.headers())["id"].decode()] = json.loads(message.value())
    return records
