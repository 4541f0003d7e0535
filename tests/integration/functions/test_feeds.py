"""Metrics that come, leave and come back, on a real Postgres: an answer is exact, or null where it has to be."""

from __future__ import annotations

import json
import math
import os
import random
import statistics
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kafka_records import KafkaRecord
from tidemill_api.catalog import PipelineModel
from tidemill_api.query.aggregate import take_query
from tidemill_api.query.parameters import Parameters
from tidemill_api.query.selection import Binder
from tidemill_api.query.sql import statement
from tidemill_contract.functions.feeds import Feeds
from tidemill_contract.resource.spec import PipelineSpec
from tidemill_contract.runtime import AggregationRef, PipelineConfig, PostgresCredentials, WorkloadSettings
from tidemill_contract.times import rfc3339, rfc3339_ms
from tidemill_operator.actuators.base import PipelineSecrets
from tidemill_operator.actuators.postgres.schema import PostgresSchemas
from tidemill_operator.outcome import Rank
from tidemill_operator.plan.live import Owner
from tidemill_operator.plan.postgres.schema import desired_schema
from tidemill_processor.batches.reader import BatchReader
from tidemill_processor.database import Database
from tidemill_processor.detect.scanning import Scanner
from tidemill_processor.publish.producer import Outlet
from tidemill_processor.publish.publisher import Publisher
from tidemill_processor.transaction import Committer, Position, Superseded
from tidemill_processor.windows.reader import WindowReader

pytestmark = pytest.mark.integration

EXAMPLES = int(os.environ.get("EXAMPLES", "12"))
MINUTE = 60_000
BASE = 1_700_000_000_000 // (6 * MINUTE) * 6 * MINUTE
OWNER = Owner("tests", "feeds", "uid-1", "local")
METRICS: dict[str, tuple[str, str | None, set[str]]] = {
    "n": ("count", None, {"_count"}),
    "nv": ("count", "v", {"_n_v"}),
    "sv": ("sum", "v", {"_sum_v"}),
    "av": ("avg", "v", {"_n_v", "_sum_v"}),
    "mx": ("max", "v", {"_max_v"}),
    "fst": ("first", "v", {"_first_v", "_first_at_v"}),
    "va": ("variance", "v", {"_n_v", "_mean_v", "_m2_v"}),
}
SHAPES = {"tumbling": (MINUTE, MINUTE), "hopping": (3 * MINUTE, MINUTE)}


def config(generation: int, wanted: dict[str, list[str]]) -> PipelineConfig:
    """The pipeline with these metrics, by aggregation; an aggregation without any is left out."""
    windows = {
        "tumbling": {"type": "tumbling", "size": "1m"},
        "hopping": {"type": "hopping", "size": "3m", "hop": "1m"},
    }
    spec = PipelineSpec.model_validate(
        {
            "source": {
                "topic": {"partitions": 1},
                "fields": [
                    {"name": "ts", "type": "timestamp", "required": True},
                    {"name": "k", "type": "string"},
                    {"name": "v", "type": "number"},
                ],
                "eventTime": {"field": "ts"},
            },
            "aggregations": [
                {
                    "name": name,
                    "groupBy": ["k"],
                    "window": windows[name],
                    "metrics": [{"name": m, "function": METRICS[m][0], "field": METRICS[m][1]} for m in metrics],
                }
                for name, metrics in wanted.items()
                if metrics
            ],
        }
    )
    refs = tuple(AggregationRef(name=a.name) for a in spec.aggregations)
    return PipelineConfig(namespace="tests", name="feeds", generation=generation, spec=spec, aggregations=refs)


@dataclass(frozen=True)
class Record(KafkaRecord):
    """A record of this pipeline's one partition."""

    p = 0
    o: int
    time: int
    group: str
    number: float | None

    def value(self) -> bytes:
        return json.dumps({"ts": self.time, "k": self.group, "v": self.number}).encode()


@dataclass
class Span:
    """A time in which a column was fed, in numbers of changes of the spec, and what was closed when it ended."""

    came: int
    left: int | None = None
    closed: int | None = None

    def holds(self, writers: set[int], row_end: int) -> bool:
        """Whether all that these wrote to a row is in the column, as far as that can be known later."""
        if not all(self.came <= w and (self.left is None or w < self.left) for w in writers):
            return False
        return self.left is None or (self.closed is not None and row_end <= self.closed)


@dataclass
class Model:
    """Events of each stored row with the number of the spec that they were written under; nothing clever."""

    rows: dict[str, dict[tuple[str, int, int], list[tuple[int, Record]]]] = field(
        default_factory=lambda: {name: defaultdict(list) for name in SHAPES}
    )
    spans: dict[str, dict[str, list[Span]]] = field(
        default_factory=lambda: {name: defaultdict(list) for name in SHAPES}
    )
    closed: dict[str, int | None] = field(default_factory=lambda: dict.fromkeys(SHAPES))

    def plan(self, number: int, wanted: dict[str, list[str]]) -> None:
        for name, metrics in wanted.items():
            columns = {c for m in metrics for c in METRICS[m][2]} | ({"_count"} if metrics else set())
            spans = self.spans[name]
            for column, known in spans.items():
                if known[-1].left is None and column not in columns:
                    known[-1].left, known[-1].closed = number, self.closed[name]
            for column in columns:
                if not spans[column] or spans[column][-1].left is not None:
                    spans[column].append(Span(number))

    def write(self, writer: int, metrics: dict[str, list[str]], record: Record) -> None:
        pane = record.time // MINUTE * MINUTE
        for name, (size, hop) in SHAPES.items():
            if not metrics[name]:
                continue
            closed = self.closed[name]
            missed = closed is not None and pane + hop <= closed
            if missed and closed is not None and pane + size <= closed:
                continue
            after = closed if missed and closed is not None else -(2**62)
            self.rows[name][record.group, pane, after].append((writer, record))

    def whole(self, name: str, metric: str, keys: list[tuple[str, int, int]]) -> bool:
        return all(
            any(
                span.holds({writer for writer, _ in self.rows[name][key]}, key[1] + SHAPES[name][0])
                for span in self.spans[name][column]
            )
            for key in keys
            for column in METRICS[metric][2]
        )

    def answer(self, name: str, metric: str, keys: list[tuple[str, int, int]]) -> Any:
        if not self.whole(name, metric, keys):
            return None
        records = sorted((r for key in keys for _, r in self.rows[name][key]), key=lambda r: (r.time, r.o))
        values = [r.number for r in records if r.number is not None]
        if metric in ("n", "nv"):
            return len(records if metric == "n" else values)
        if not values:
            return None
        answers = {
            "sv": math.fsum,
            "av": statistics.fmean,
            "mx": max,
            "fst": lambda v: v[0],
            "va": statistics.pvariance,
        }
        return answers[metric](values)

    def windows(self, name: str) -> dict[tuple[str, int], list[tuple[str, int, int]]]:
        size, hop = SHAPES[name]
        found: dict[tuple[str, int], list[tuple[str, int, int]]] = defaultdict(list)
        for key in self.rows[name]:
            group, pane, after = key
            for start in range(pane - size + hop, pane + 1, hop):
                if start + size > after:
                    found[group, start].append(key)
        return found


@dataclass(frozen=True)
class Writer:
    """A processor of one spec; `number` counts the specs."""

    number: int
    config: PipelineConfig
    wanted: dict[str, list[str]]
    connection: psycopg.Connection[Any]
    committer: Committer


class Stage:
    """The pipeline's schema, made and changed by the operator, and processors of every spec that it has had."""

    def __init__(self, servers: Any) -> None:
        self.servers, self.model = servers, Model()
        self.admin = self.connect()
        self.admin.execute('DROP SCHEMA IF EXISTS "tests__feeds" CASCADE')
        self.number, self.offset = 0, 0
        self.wanted: dict[str, list[str]] = {}
        self.writers: list[Writer] = []

    def connect(self) -> psycopg.Connection[Any]:
        return psycopg.connect(self.servers.postgres.url, autocommit=True, options="-c TimeZone=UTC")

    def plan(self, wanted: dict[str, list[str]]) -> None:
        """Apply the next generation, and start its processor."""
        self.number += 1
        now = config(self.number, wanted)
        self.ensure(now, OWNER)
        assert self.ensure(now, OWNER) == 0, "a second time changes nothing"
        if self.number == 1:
            self.admin.execute("UPDATE \"tests__feeds\"._offsets SET topic_id = 'x', next_offset = 0")
        self.model.plan(self.number, wanted)
        self.wanted = wanted
        self.start(now)

    def ensure(self, wanted: PipelineConfig, owner: Owner, *, adopt: bool = False) -> int:
        """Let the operator make the schema so; the number of changes."""
        schema = desired_schema(wanted)
        logins = PipelineSecrets(
            PostgresCredentials(user=schema.writer, password="w"), PostgresCredentials(user=schema.reader, password="r")
        )
        actuator = PostgresSchemas(self.servers.postgres)
        (made,) = actuator.ensure(schema, owner=owner, secrets=logins, adopt=adopt)
        assert made.rank == Rank.DONE, made
        return made.changed

    def start(self, now: PipelineConfig) -> None:
        """Start a processor with a config."""
        connection, database = self.connect(), Database(WorkloadSettings(), now, 10)
        committer = Committer(connection, database, database.aggregations(connection), now)
        self.writers.append(Writer(self.number, now, self.wanted, connection, committer))

    def commit(self, events: list[tuple[int, str, float | None]], *, age: int = 0) -> None:
        """Store events with the newest processor, or one that is `age` specs older and has not noticed yet."""
        writer = self.writers[max(0, len(self.writers) - 1 - age)]
        records = [Record(self.offset + i, *event) for i, event in enumerate(events)]
        batch = BatchReader(writer.config.spec).read(records, BASE + 86_400_000)
        at = {0: Position(self.offset, 0)}
        if writer.number < self.number:
            with pytest.raises(Superseded):
                writer.committer.commit(batch, at)
        # As if the generation had been read a moment before it was raised.
        self._generation(writer.number)
        writer.committer.commit(batch, at)
        self._generation(self.number)
        self.offset += len(records)
        for record in records:
            self.model.write(writer.number, writer.wanted, record)

    def _generation(self, number: int) -> None:
        self.admin.execute('UPDATE "tests__feeds"._generation SET generation = %s', (number,))

    def close(self, until: int) -> None:
        """Move the closing of the aggregations that there are."""
        for name in [name for name, metrics in self.wanted.items() if metrics]:
            known = self.model.closed[name]
            self.model.closed[name] = until if known is None else max(until, known)
            self.admin.execute(
                'UPDATE "tests__feeds"._aggregations SET closed_until = %s WHERE name = %s',
                (self.model.closed[name], name),
            )

    def end(self) -> None:
        for writer in self.writers:
            writer.connection.close()
        self.admin.close()

    def verify(self) -> None:
        """Windows as the processor reads them, windows and roll-ups as the API does, against the model."""
        now = self.writers[-1].config
        database = Database(WorkloadSettings(), now, 10)
        for store in database.aggregations(self.admin):
            name, rows, windows = store.name, self.model.rows[store.name], self.model.windows(store.name)
            with self.admin.transaction():
                read = list(WindowReader(database, store).read(self.admin, BASE - 60 * MINUTE, BASE + 60 * MINUTE))
            expected = {(k, rfc3339_ms(start)): keys for (k, start), keys in windows.items()}
            self._compare(name, {(row["k"], row["window_start"]): row for row in read}, expected, "results")
            self._compare(name, self.ask(name, "limit=10000"), expected, "API")
            totals, buckets, everything = defaultdict(list), defaultdict(list), defaultdict(list)
            for (_, start), keys in windows.items():
                totals[rfc3339_ms(start),] += keys
            for key in rows:
                buckets[key[0], rfc3339_ms(key[1] // (2 * MINUTE) * 2 * MINUTE)].append(key)
                everything[()].append(key)
            self._compare(name, self.ask(name, "group_by="), totals, "fewer groups")
            self._compare(name, self.ask(name, "granularity=2m"), buckets, "coarser time")
            self._compare(name, self.ask(name, "granularity=all&group_by="), everything, "everything")

    def ask(self, name: str, text: str = "") -> dict[Any, dict[str, Any]]:
        """The API's answer to a query, by group and start of the window."""
        (row,) = self.admin.execute(
            'SELECT layout, fed FROM "tests__feeds"._aggregations WHERE name = %s', (name,)
        ).fetchall()
        model = PipelineModel(self.writers[-1].config).aggregation(name).fed(Feeds.read(*row))
        query, binder = take_query(model, Parameters.from_query(text.encode())), Binder()
        found = self.admin.execute(statement(query, binder, None), binder.values).fetchall()
        answer = {}
        for values in found:
            row = dict(zip((c.name for c in query.columns), values, strict=True))
            start = () if "granularity=all" in text else (rfc3339(row["window_start"]),)
            answer[(row["k"], *start) if "k" in row else start] = row
        return answer

    def _compare(self, name: str, got: dict[Any, Any], want: dict[Any, list[tuple[str, int, int]]], how: str) -> None:
        assert set(want) == set(got), (name, how)
        for key, keys in want.items():
            for metric in self.wanted[name]:
                expected, value = self.model.answer(name, metric, keys), got[key][metric]
                same = expected == value or (
                    None not in (expected, value) and math.isclose(expected, value, rel_tol=1e-9, abs_tol=1e-9)
                )
                assert same, (name, how, key, metric, expected, value)


@contextmanager
def staged(servers: Any) -> Iterator[Stage]:
    stage = Stage(servers)
    try:
        yield stage
    finally:
        stage.end()


BOTH = {name: ["n"] for name in SHAPES}
SETS = st.lists(st.sampled_from(sorted(METRICS)), max_size=5, unique=True)
STEP = st.one_of(
    st.tuples(st.just("plan"), SETS, SETS),
    st.tuples(st.just("commit"), st.integers(1, 12), st.sampled_from([0, 0, 0, 1, 2])),
    st.tuples(st.just("commit"), st.integers(1, 12), st.just(0)),
    st.tuples(st.just("close"), st.integers(0, 5), st.just(0)),
)


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.lists(STEP, min_size=4, max_size=14), st.integers(0, 10**9))
def test_an_answer_is_exact_or_null(servers: Any, script: list[tuple[Any, ...]], seed: int) -> None:
    """Whatever comes and leaves, and whoever of the older processors still writes: no partial value is ever told."""
    rnd = random.Random(seed)
    with staged(servers) as stage:
        stage.plan({name: ["n", "sv"] for name in SHAPES})
        for action, one, other in script:
            if action == "plan":
                tumbling = sorted(one) or (["n"] if not other else [])
                stage.plan({"tumbling": tumbling, "hopping": sorted(other)})
            elif action == "close":
                stage.close(BASE + one * MINUTE)
            else:
                events = [
                    (BASE + rnd.randrange(6 * MINUTE), rnd.choice("ab"), rnd.choice([None, float(rnd.randrange(9))]))
                    for _ in range(one)
                ]
                stage.commit(events, age=other)
            stage.verify()


def at(minute: float, group: str = "a", number: float | None = 1.0) -> tuple[int, str, float | None]:
    return BASE + round(minute * MINUTE), group, number


def values(stage: Stage, name: str, metric: str, text: str = "") -> dict[tuple[str, int], Any]:
    """A metric by group and minute of the window's start, as the API answers."""
    minutes = {rfc3339_ms(BASE + n * MINUTE): n for n in range(-5, 10)}
    found = {key: row[metric] for key, row in stage.ask(name, text).items()}
    return {(key[0] if len(key) == 2 else "", minutes[key[-1]]): value for key, value in found.items()}


def test_a_sum_that_comes_in_the_middle_of_a_window(servers: Any) -> None:
    """That window answers null for it for good, the next ones are exact, and so is a group that is new in it."""
    with staged(servers) as stage:
        stage.plan(BOTH)
        stage.commit([at(0), at(1), at(1)])
        stage.plan({name: ["n", "sv"] for name in SHAPES})
        stage.commit([at(1.5), at(1.5, "b"), at(2), at(2), at(3)])
        assert values(stage, "tumbling", "n") == {("a", 0): 1, ("a", 1): 3, ("b", 1): 1, ("a", 2): 2, ("a", 3): 1}
        assert values(stage, "tumbling", "sv") == {
            ("a", 0): None, ("a", 1): None, ("b", 1): 1.0, ("a", 2): 2.0, ("a", 3): 1.0,
        }  # fmt: skip
        hopping = values(stage, "hopping", "sv")
        assert {start: value for (group, start), value in hopping.items() if group == "a"} == {
            -2: None, -1: None, 0: None, 1: None, 2: 3.0, 3: 1.0,
        }  # fmt: skip
        assert values(stage, "tumbling", "sv", "group_by=") == {
            ("", 0): None,
            ("", 1): None,
            ("", 2): 2.0,
            ("", 3): 1.0,
        }
        assert values(stage, "tumbling", "n", "sv__gte=0&metrics=n") == {("b", 1): 1, ("a", 2): 2, ("a", 3): 1}
        assert values(stage, "tumbling", "n", "sv__isnull=true") == {("a", 0): 1, ("a", 1): 3}
        stage.close(BASE + 10 * MINUTE)
        stage.verify()


def test_a_metric_that_needs_no_new_column_is_right_at_once(servers: Any) -> None:
    """An average of what is summed and counted already."""
    with staged(servers) as stage:
        stage.plan({name: ["nv", "sv"] for name in SHAPES})
        stage.commit([at(0, number=2.0), at(0, number=4.0)])
        stage.plan({name: ["nv", "sv", "av"] for name in SHAPES})
        assert values(stage, "tumbling", "av") == {("a", 0): 3.0}
        assert stage.admin.execute(
            'SELECT DISTINCT layout, fed::text FROM "tests__feeds"._aggregations'
        ).fetchall() == [(0, "{}")]


def test_a_metric_that_was_away(servers: Any) -> None:
    """Windows that were closed when it left are as they were; what took events meanwhile, or may have, is null."""
    with staged(servers) as stage:
        stage.plan({name: ["n", "sv"] for name in SHAPES})
        stage.commit([at(0), at(1), at(2)])
        stage.close(BASE + MINUTE)
        stage.plan(BOTH)
        stage.commit([at(1), at(3)])
        stage.plan({name: ["n", "sv"] for name in SHAPES})
        stage.commit([at(3), at(4)])
        assert values(stage, "tumbling", "sv") == {
            ("a", 0): 1.0, ("a", 1): None, ("a", 2): None, ("a", 3): None, ("a", 4): 1.0,
        }  # fmt: skip
        assert values(stage, "tumbling", "n") == {("a", 0): 1, ("a", 1): 2, ("a", 2): 1, ("a", 3): 2, ("a", 4): 1}
        stage.verify()


def test_an_aggregation_that_was_away(servers: Any) -> None:
    """Its rows took no events meanwhile: counts of windows that were open then are null, not short."""
    with staged(servers) as stage:
        stage.plan(BOTH)
        stage.commit([at(0), at(1)])
        stage.close(BASE + MINUTE)
        stage.plan({"tumbling": [], "hopping": ["n"]})
        stage.commit([at(1)])
        stage.plan(BOTH)
        stage.commit([at(1), at(2)])
        assert values(stage, "tumbling", "n") == {("a", 0): 1, ("a", 1): None, ("a", 2): 1}


def test_a_superseded_processor_reads_no_window_that_closed_since(servers: Any) -> None:
    """Others feed other columns now: what is left to publish and to scan is left to them."""
    with staged(servers) as stage:
        stage.plan(BOTH)
        stage.commit([at(0)])
        old = stage.writers[-1].config
        stage.plan({name: ["sv"] for name in SHAPES})
        stage.close(BASE + 5 * MINUTE)
        until = 'SELECT DISTINCT scanned_until, published_until FROM "tests__feeds"._aggregations'
        for now, expected in ((old, (None, None)), (stage.writers[-1].config, (BASE + 5 * MINUTE,) * 2)):
            database = Database(WorkloadSettings(), now, 10)
            stores = database.aggregations(stage.admin)
            publisher = Publisher(database, stores, now, Outlet(Nowhere))
            for _ in range(20):
                for _, publish in publisher.duties(stage.admin, dict.fromkeys(SHAPES, BASE + 5 * MINUTE)):
                    publish()
                for store in stores:
                    Scanner(database, store, []).run(stage.admin, BASE + 5 * MINUTE)
            assert stage.admin.execute(until).fetchall() == [expected]


class Nowhere:
    """A producer whose broker acknowledges everything."""

    def produce(self, topic: str, value: bytes, key: bytes, **record: Any) -> None:
        pass

    def flush(self, seconds: float) -> int:
        return 0


def test_generations_that_count_anew(servers: Any) -> None:
    """Another resource takes the schema over, and its first generation is 1 again: old rows do not pass for new."""
    with staged(servers) as stage:
        stage.number = 8
        stage.plan(BOTH)
        stage.admin.execute("UPDATE \"tests__feeds\"._offsets SET topic_id = 'x', next_offset = 0")
        stage.commit([at(0)])
        adopted = config(1, {name: ["n", "sv"] for name in SHAPES})
        stage.ensure(adopted, Owner("tests", "feeds", "uid-2", "local"), adopt=True)
        stage.number = 1
        stage.start(adopted)
        stage.commit([at(0), at(1)])
        assert values(stage, "tumbling", "sv") == {("a", 0): None, ("a", 1): 1.0}


def test_a_schema_from_before_the_columns(servers: Any) -> None:
    """Its columns count as fed all along; a metric added in the same pass waits, as any other."""
    with staged(servers) as stage:
        stage.plan({name: ["n", "sv"] for name in SHAPES})
        stage.commit([at(0)])
        stage.admin.execute(
            'ALTER TABLE "tests__feeds"._aggregations DROP COLUMN layout, DROP COLUMN fed;'
            'ALTER TABLE "tests__feeds".tumbling_v1 DROP COLUMN _since;'
            'ALTER TABLE "tests__feeds".hopping_v1 DROP COLUMN _since'
        )
        stage.plan({name: ["n", "sv", "mx"] for name in SHAPES})
        stage.commit([at(0), at(1)])
        assert values(stage, "tumbling", "sv") == {("a", 0): 2.0, ("a", 1): 1.0}
        assert values(stage, "tumbling", "mx") == {("a", 0): None, ("a", 1): 1.0}


def test_a_schema_whose_means_are_single_doubles(servers: Any) -> None:
    """Their low parts come as a column that nothing waits for: variances stay, and go on."""
    with staged(servers) as stage:
        stage.plan({name: ["n", "va"] for name in SHAPES})
        stage.commit([at(0, number=1.0), at(0, number=4.0), at(1)])
        stage.admin.execute(
            'ALTER TABLE "tests__feeds".tumbling_v1 DROP COLUMN _low_v;'
            'ALTER TABLE "tests__feeds".hopping_v1 DROP COLUMN _low_v;'
            'UPDATE "tests__feeds"._aggregations'
            " SET shape = jsonb_set(shape, '{partials}', (shape -> 'partials') - '_low_v')"
        )
        stage.plan({name: ["n", "va"] for name in SHAPES})
        assert values(stage, "tumbling", "va") == {("a", 0): 2.25, ("a", 1): 0}
        stage.commit([at(0, number=7.0), at(2)])
        assert values(stage, "tumbling", "va") == {("a", 0): 6.0, ("a", 1): 0, ("a", 2): 0}
        stage.verify()
