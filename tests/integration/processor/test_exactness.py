"""Windows against a naive model: any order, any batch split, crashes, redelivery, zombies and closing in between.

And a replay that meets live processors: its version ends with every event once, too.
"""

from __future__ import annotations

import json
import math
import os
import random
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kafka_records import KafkaRecord
from played.processor import PlayedProcessor, begin_replay, make_replay_tables
from tidemill_contract.resource.spec import PipelineSpec
from tidemill_contract.runtime import AggregationRef, PipelineConfig
from tidemill_contract.times import rfc3339_ms
from tidemill_processor import replay
from tidemill_processor.batches.exploding import batch_reader
from tidemill_processor.database import Database
from tidemill_processor.merge import merging
from tidemill_processor.transaction import Committer, Fenced, Position
from tidemill_processor.windows.reader import WindowReader

pytestmark = [pytest.mark.integration, pytest.mark.slow]

# How many scripts are drawn of the dearest kind; of the others some less.
EXAMPLES = int(os.environ.get("EXAMPLES", "20"))
BASE = 1_700_000_000_000 // 60_000 * 60_000
METRICS = [
    {"name": "n", "function": "count"},
    {"name": "nv", "function": "count", "field": "v"},
    {"name": "sv", "function": "sum", "field": "v"},
    {"name": "si", "function": "sum", "field": "i"},
    {"name": "av", "function": "avg", "field": "v"},
    {"name": "mn", "function": "min", "field": "v"},
    {"name": "mx", "function": "max", "field": "i"},
    {"name": "fst", "function": "first", "field": "v"},
    {"name": "lst", "function": "last", "field": "k"},
    {"name": "va", "function": "variance", "field": "v"},
    {"name": "sd", "function": "stddev", "field": "i"},
    {"name": "share", "function": "avg", "field": "big"},
    {"name": "p90", "function": "quantile", "field": "v", "q": 0.9},
    {"name": "low", "function": "quantile", "field": "v", "q": 0.01},
    {"name": "uk", "function": "distinct", "field": "k"},
    {"name": "ui", "function": "distinct", "field": "i"},
    {"name": "tk", "function": "topk", "field": "k"},
    {"name": "ti", "function": "topk", "field": "i", "k": 3},
    {"name": "tb", "function": "topk", "field": "big"},
]
SPEC = PipelineSpec.model_validate(
    {
        "source": {
            "topic": {"partitions": 3},
            "fields": [
                {"name": "ts", "type": "timestamp", "required": True},
                {"name": "k", "type": "string"},
                {"name": "v", "type": "number"},
                {"name": "i", "type": "integer"},
            ],
            "eventTime": {"field": "ts"},
        },
        "transform": {"filter": "i IS NULL OR i <> 13", "derive": [{"name": "big", "expression": "v > 5"}]},
        "aggregations": [
            {"name": "tumbling", "groupBy": ["k"], "window": {"type": "tumbling", "size": "1m"}, "metrics": METRICS},
            {
                "name": "hopping",
                "groupBy": ["k"],
                "window": {"type": "hopping", "size": "3m", "hop": "1m"},
                "metrics": METRICS,
            },
            {
                "name": "total",
                "window": {"type": "hopping", "size": "2m", "hop": "1m"},
                "latePolicy": "drop",
                "metrics": METRICS,
            },
            {
                "name": "visits",
                "groupBy": ["k", "i"],
                "window": {"type": "session", "gap": "25s", "maxLength": "2m"},
                "metrics": METRICS,
            },
            {
                "name": "bursts",
                "window": {"type": "session", "gap": "2s"},
                "latePolicy": "drop",
                "metrics": METRICS,
            },
            {
                "name": "again",
                "groupBy": ["k"],
                "window": {"type": "hopping", "size": "2m", "hop": "1m"},
                "latePolicy": "reopen",
                "retention": "3m",
                "metrics": METRICS,
            },
            {
                "name": "revisits",
                "groupBy": ["k"],
                "window": {"type": "session", "gap": "20s"},
                "latePolicy": "reopen",
                "retention": "3m",
                "metrics": METRICS,
            },
        ],
    }
)
CONFIG = PipelineConfig(
    namespace="tests", name="exactness", generation=1, spec=SPEC,
    aggregations=tuple(AggregationRef(name=a.name) for a in SPEC.aggregations),
)  # fmt: skip
SHAPES = {
    "tumbling": (60_000, 60_000, True),
    "hopping": (180_000, 60_000, True),
    "total": (120_000, 60_000, False),
    "again": (120_000, 60_000, True),
}
SESSIONS = {
    "visits": (25_000, 120_000, ("k", "i")),
    "bursts": (2_000, 86_400_000, ()),
    "revisits": (20_000, 86_400_000, ("k",)),
}
REOPEN = {"again": 180_000, "revisits": 180_000}
NAMES = (*SHAPES, *SESSIONS)


@dataclass(frozen=True)
class Record(KafkaRecord):
    """A record of this pipeline; `us`: microseconds of its time beyond the millisecond."""

    p: int
    o: int
    members: dict[str, Any]
    us: int = 0

    def value(self) -> bytes:
        if not self.us:
            return json.dumps(self.members).encode()
        seconds, ms = divmod(self.members["ts"], 1000)
        text = f"{rfc3339_ms(seconds * 1000)[:-1]}.{ms:03}{self.us:03}9Z"
        return json.dumps({**self.members, "ts": text}).encode()


@dataclass
class Session:
    """What should be a session: events of a group, and the time that they span."""

    group: tuple[Any, ...]
    start: int
    end: int
    events: list[Record]

    def meets(self, other: Session) -> bool:
        return self.group == other.group and self.start < other.end and other.start < self.end

    def __add__(self, other: Session) -> Session:
        start, end = min(self.start, other.start), max(self.end, other.end)
        return Session(self.group, start, end, self.events + other.events)


class Model:
    """What each window should hold: lists of events, nothing clever."""

    def __init__(self) -> None:
        self.windows: dict[str, dict[tuple[Any, int], list[Record]]] = {name: defaultdict(list) for name in SHAPES}
        self.sessions: dict[str, list[Session]] = {name: [] for name in SESSIONS}
        self.closed: dict[str, int | None] = dict.fromkeys(NAMES)
        self.late: dict[str, int] = dict.fromkeys(NAMES, 0)

    def shut(self, name: str) -> int:
        """Windows that end by this take nothing more."""
        closed = self.closed[name]
        return -(2**63) if closed is None else closed - REOPEN.get(name, 0)

    def add(self, record: Record) -> None:
        if record.members.get("i") == 13:
            return
        time = record.members["ts"]
        for name, (size, hop, by_key) in SHAPES.items():
            closed = self.shut(name)
            newest = time // hop * hop
            missed = False
            for start in range(newest - size + hop, newest + 1, hop):
                if start + size <= closed:
                    missed = True
                else:
                    self.windows[name][record.members.get("k") if by_key else None, start].append(record)
            self.late[name] += missed

    def add_batch(self, records: list[Record]) -> None:
        """Sessions: what is late depends on what came in the same batch."""
        for record in records:
            self.add(record)
        for name, (gap, longest, group) in SESSIONS.items():
            closed = self.shut(name)
            own = []
            for record in records:
                time, members = record.members["ts"], record.members
                if members.get("i") != 13:
                    end = min(time + gap, (time // longest + 1) * longest)
                    own.append(Session(tuple(members.get(column) for column in group), time, end, [record]))
            known = self.sessions[name]
            done = [session for session in known if session.end <= closed]
            covered = [e for e in own if e.end <= closed and any(d.meets(e) and d.start <= e.start for d in done)]
            pieces = [s for s in known if s.end > closed] + [e for e in own if e not in covered]
            for _ in range(len(pieces)):
                pieces = joined(pieces)
            late = [piece for piece in pieces if piece.end <= closed]
            self.late[name] += len(covered) + sum(len(piece.events) for piece in late)
            self.sessions[name] = done + [piece for piece in pieces if piece.end > closed]

    def expected(self, name: str) -> dict[tuple[Any, ...], list[Record]]:
        """Events by group, start and end."""
        if name in SESSIONS:
            return {(*s.group, s.start, s.end): s.events for s in self.sessions[name]}
        size, _, by_key = SHAPES[name]
        keys = {(k, start): ((k,) if by_key else ()) for k, start in self.windows[name]}
        return {(*keys[k, s], s, s + size): events for (k, s), events in self.windows[name].items()}


def joined(pieces: list[Session]) -> list[Session]:
    """The first two that meet made one."""
    for i, piece in enumerate(pieces):
        for other in pieces[i + 1 :]:
            if piece.meets(other):
                return [piece + other, *(p for p in pieces if p is not piece and p is not other)]
    return pieces


def expected(events: list[Record]) -> dict[str, Any]:
    ordered = sorted(events, key=lambda r: (r.members["ts"], r.us, r.p, r.o))
    v = [r.members["v"] for r in ordered if r.members.get("v") is not None]
    i = [r.members["i"] for r in ordered if r.members.get("i") is not None]
    k = [r.members["k"] for r in ordered if r.members.get("k") is not None]

    def spread(values: list[Any]) -> float | None:
        if not values:
            return None
        mean = math.fsum(values) / len(values)
        return math.fsum((x - mean) ** 2 for x in values) / len(values)

    deviation = spread(i)
    return {
        "n": len(ordered), "nv": len(v), "sv": math.fsum(v) if v else None, "si": sum(i) if i else None,
        "av": math.fsum(v) / len(v) if v else None, "mn": min(v, default=None), "mx": max(i, default=None),
        "fst": v[0] if v else None, "lst": k[-1] if k else None, "va": spread(v),
        "sd": None if deviation is None else math.sqrt(deviation),
        "share": sum(x > 5 for x in v) / len(v) if v else None, "p90": nearest_rank(v, 0.9),
        "low": nearest_rank(v, 0.01), "uk": len(set(k)) if k else None, "ui": len(set(i)) if i else None,
        "tk": most_frequent(k), "ti": most_frequent(i, 3), "tb": most_frequent([x > 5 for x in v]),
    }  # fmt: skip


def most_frequent(values: list[Any], k: int = 10) -> list[dict[str, Any]] | None:
    counts = sorted((-count, value) for value, count in Counter(values).items())
    return [{"value": value, "count": -count, "error": 0} for count, value in counts[:k]] or None


def nearest_rank(values: list[float], q: float) -> float | None:
    return sorted(values)[math.ceil(q * len(values)) - 1] if values else None


def close(a: Any, b: Any, scale: float) -> bool:
    if a is None or b is None or not isinstance(b, float):
        return a == b
    return math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-9 * scale)


KEYS = ["a", "b", None, "", 'Ü,"\n\\N']


def draw_events(rnd: random.Random, number: int) -> dict[int, list[Record]]:
    """Logs of three partitions: few keys, many equal times, every kind of absence, integers at the edge of 64 bits.

    Half of the times are texts finer than a millisecond, some so close to the next that rounding would reach it.
    """
    logs: dict[int, list[Record]] = {0: [], 1: [], 2: []}
    for _ in range(number):
        members: dict[str, Any] = {"ts": BASE + rnd.randrange(0, 360) * 1_000, "k": rnd.choice(KEYS)}
        if rnd.random() < 0.8:
            members["v"] = round(rnd.uniform(-100, 100), 3)
        if rnd.random() < 0.8:
            members["i"] = rnd.choice([rnd.randint(-(2**63), 2**63 - 1), rnd.randint(-5, 5), 13, 2**63 - 1])
        p = rnd.randrange(3)
        logs[p].append(Record(p, len(logs[p]), members, rnd.choice([0, 0, rnd.randrange(1000), 999])))
    return logs


FIELDS = [field.model_copy(update={"path": f"items[].{field.name}"}) for field in SPEC.source.fields]
EXPLODED = SPEC.model_copy(update={"source": SPEC.source.model_copy(update={"fields": FIELDS})})


@dataclass(frozen=True)
class Array(KafkaRecord):
    """A record with events in an array, whose offsets are those in it and their places."""

    p: int
    o: int
    elements: tuple[Record, ...]

    def value(self) -> bytes:
        return b'{"items": [%b]}' % b", ".join(event.value() for event in self.elements)


def in_arrays(logs: dict[int, list[Record]], rnd: random.Random) -> dict[int, list[Any]]:
    """The same events, some together, some times of one record equal; a few records have none."""
    packed: dict[int, list[Any]] = {p: [] for p in logs}
    for p, log in logs.items():
        while log:
            some, log = log[: (size := rnd.choice([0, 1, 2, 7]))], log[size:]
            at = len(packed[p])
            packed[p].append(Array(p, at, tuple(replace(event, o=(at, n)) for n, event in enumerate(some))))
    return packed


ACTION = st.sampled_from(["commit", "commit", "commit", "crash", "close", "redeliver", "zombie"])


@pytest.fixture
def stage(
    make_schema: Callable[[PipelineConfig], tuple[psycopg.Connection[Any], Database]], monkeypatch: pytest.MonkeyPatch
) -> Any:
    monkeypatch.setattr(merging, "SKETCH_BYTES", 400)  # so that what is appended is compacted every now and then
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
    """Each record counts exactly once in each of its windows that is open, whatever happens on the way."""
    connection, database = stage
    rnd = random.Random(seed)
    follow(connection, database, script, draw_events(rnd, number), rnd, SPEC)


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
    """The same of elements of an exploded array, which are in order and late one by one, their records in or out."""
    connection, database = stage
    rnd = random.Random(seed)
    follow(connection, database, script, in_arrays(draw_events(rnd, number), rnd), rnd, EXPLODED)


def follow(
    connection: Any,
    database: Database,
    script: list[tuple[str, int, int]],
    logs: dict[int, list[Any]],
    rnd: random.Random,
    spec: PipelineSpec,
) -> None:
    """Play a script with these logs, and hold the windows against the model."""
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
            # The next process does not know the partitions of tables that were made and rolled back.
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


def take(logs: dict[int, list[Record]], start: dict[int, int], size: int, rnd: random.Random) -> list[Record]:
    waiting = {p: log[start[p] : start[p] + size] for p, log in logs.items()}
    batch = []
    while any(waiting.values()) and len(batch) < size:
        p = rnd.choice([p for p, rest in waiting.items() if rest])
        batch.append(waiting[p].pop(0))
    return batch


def wipe(connection: psycopg.Connection[Any], database: Database) -> None:
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
    for store in stores:
        known = model.closed[store.name]
        model.closed[store.name] = until if known is None else max(known, until)
        connection.execute(
            f"UPDATE {database.schema}._aggregations SET closed_until = %s WHERE id = %s",
            (model.closed[store.name], store.id),
        )


def verify(connection: Any, database: Database, stores: Any, model: Model) -> None:
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
