"""Any finite values in any function and window: no statement is refused, and each answer is right or beyond a double.

Compared with exact fractions, as the results topic and the API read windows, and rolled up. `EXAMPLES` is how many
cases are drawn; `--hypothesis-seed` draws others.
"""

from __future__ import annotations

import datetime as dt
import json
import math
import os
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from drawn.metrics import functions_for, parameters_for
from kafka_records import KafkaRecord
from oracle.cells import metric_cell
from tidemill_api.catalog import PipelineModel
from tidemill_api.formats.ndjson import NdjsonWriter
from tidemill_api.query.aggregate import take_query
from tidemill_api.query.parameters import Parameters
from tidemill_api.query.selection import Binder
from tidemill_api.query.sql import statement
from tidemill_contract.events.details import SECONDS_FROM, SECONDS_TO
from tidemill_contract.resource.spec import PipelineSpec
from tidemill_contract.runtime import AggregationRef, PipelineConfig
from tidemill_contract.times import rfc3339_ms
from tidemill_processor.batches.reader import BatchReader
from tidemill_processor.database import Database
from tidemill_processor.merge import merging
from tidemill_processor.transaction import Committer, Position
from tidemill_processor.windows.reader import WindowReader

pytestmark = pytest.mark.integration

EXAMPLES = int(os.environ.get("EXAMPLES", "12"))
MINUTE = 60_000
BASE = 1_700_000_000_000 // (60 * MINUTE) * 60 * MINUTE
LARGEST, TINIEST = math.nextafter(math.inf, 0), 5e-324
NUMERIC = ["sum", "avg", "variance", "stddev", "quantile"]
FUNCTIONS = {
    "v": ["count", "min", "max", "first", "last", "distinct", "topk", *NUMERIC],
    "i": ["count", "min", "max", "first", "last", "distinct", "topk", *NUMERIC],
    "b": ["sum", "stddev", "quantile"],
    "s": ["max", "topk"],
    "at": ["min", "last"],
}
Q = 0.999999
METRICS = [{"name": "n", "function": "count"}] + [
    {"name": f"{field}_{function}", "function": function, "field": field} | ({"q": Q} if function == "quantile" else {})
    for field, functions in FUNCTIONS.items()
    for function in functions
]
# Each further function that there is, of each field that it takes.
TYPES = {"v": "number", "i": "integer", "b": "boolean", "s": "string", "at": "timestamp"}
FURTHER = [
    {"name": f"{field}_{function}", "function": function, "field": field}
    | parameters_for(function, {name: kind for name, kind in TYPES.items() if name != field})
    for field, kind in TYPES.items()
    for function in functions_for(kind)
    if function not in FUNCTIONS["v"]
] + [{"name": "n_per_second", "function": "rate"}]
REOPENS = {"metrics": METRICS, "latePolicy": "reopen", "retention": "2h"}
MORE = REOPENS | {"metrics": FURTHER}
HOPPING = {"type": "hopping", "size": "3m", "hop": "1m"}
VISITS = {"type": "session", "gap": "25s", "maxLength": "2m"}
SPEC = PipelineSpec.model_validate(
    {
        "source": {
            "topic": {"partitions": 1},
            "fields": [
                {"name": "ts", "type": "timestamp", "required": True},
                {"name": "k", "type": "string"},
                {"name": "v", "type": "number"},
                {"name": "i", "type": "integer"},
                {"name": "b", "type": "boolean"},
                {"name": "s", "type": "string"},
                {"name": "at", "type": "timestamp"},
            ],
            "eventTime": {"field": "ts"},
        },
        "aggregations": [
            {"name": "tumbling", "groupBy": ["k"], "window": {"type": "tumbling", "size": "1m"}, **REOPENS},
            {"name": "hopping", "groupBy": ["k"], "window": HOPPING, **REOPENS},
            {"name": "by_number", "groupBy": ["v", "i"], "window": {"type": "tumbling", "size": "1h"}, **REOPENS},
            {
                "name": "visits",
                "groupBy": ["k"],
                "window": VISITS,
                **REOPENS,
            },
            {"name": "more", "groupBy": ["k"], "window": {"type": "tumbling", "size": "1m"}, **MORE},
            {"name": "more_hopping", "groupBy": ["k"], "window": HOPPING, **MORE},
            {"name": "more_visits", "groupBy": ["k"], "window": VISITS, **MORE},
        ],
    }
)
CONFIG = PipelineConfig(
    namespace="tests", name="values", generation=1, spec=SPEC,
    aggregations=tuple(AggregationRef(name=a.name) for a in SPEC.aggregations),
)  # fmt: skip
Event = dict[str, Any]
Windows = dict[tuple[Any, ...], list["Record"]]


@dataclass(frozen=True)
class Record(KafkaRecord):
    """An event in its place."""

    p = 0
    o: int
    members: Event

    def value(self) -> bytes:
        return json.dumps(self.members).encode()


# --- what is right ---------------------------------------------------------------------------------------------------


def approximately(exact: Fraction, scale: Fraction, *, within: Fraction, least: float) -> Callable[[Any], bool]:
    """Off by at most 1e-9 of `scale`; null must be what is beyond a double, and may be where `within` is."""

    def right(got: Any) -> bool:
        if got is None:
            return within > Fraction(LARGEST) / 16
        return math.isfinite(got) and abs(Fraction(got) - exact) <= scale / 10**9 + Fraction(least)

    return right


def spread(values: list[Any]) -> Fraction:
    total = Fraction(sum(map(Fraction, values)))
    mean = total / len(values)
    return sum((Fraction(value) - mean) ** 2 for value in values) / len(values)


def is_root(variance: Fraction, check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """Whether it is a standard deviation: null where the variance may be."""
    return lambda got: (
        check(None) if got is None else abs(Fraction(got) ** 2 - variance) <= variance / 10**9 + Fraction(1e-300)
    )


def expected(field: str, function: str, records: list[Record]) -> Callable[[Any], bool]:
    """What tells whether an answer is right."""
    values = [r.members[field] for r in records if r.members.get(field) is not None]
    if function == "count":
        return lambda got: got == len(values)
    if not values:
        return lambda got: got is None
    shown: Callable[[Any], Any] = rfc3339_ms if field == "at" else lambda value: value
    size = sum(abs(Fraction(value)) for value in values) if field in "vib" else Fraction(0)
    match function:
        case "sum" if field != "v":
            return lambda got: got == sum(values)
        case "sum":
            return approximately(sum(map(Fraction, values)), size, within=size, least=0)
        case "avg":
            mean = Fraction(sum(map(Fraction, values))) / len(values)
            scale = abs(mean) if field != "v" else size / len(values)
            return approximately(mean, scale, within=size, least=TINIEST)
        case "variance" | "stddev":
            variance = spread(values)
            check = approximately(variance, variance, within=16 * len(values) * variance, least=1e-300)
            return check if function == "variance" else is_root(variance, check)
        case "quantile":
            return lambda got: got == sorted(values)[math.ceil(Q * len(values)) - 1]
        case "distinct":
            return lambda got: got == len(set(values))
        case "topk":
            counts = sorted((-count, value) for value, count in Counter(values).items())
            return lambda got: got == [{"value": shown(v), "count": -n, "error": 0} for n, v in counts[:10]]
        case "min" | "max":
            return lambda got: got == shown({"min": min, "max": max}[function](values))
        case _:
            return lambda got: got == shown(values[0 if function == "first" else -1])


def compare(got: dict[Any, dict[str, Any]], want: Windows, how: str) -> None:
    assert set(got) == set(want), how
    for key, records in want.items():
        row, ordered = got[key], sorted(records, key=lambda r: (r.members["ts"], r.o))
        assert row["n"] == len(ordered), (how, key)
        for field, functions in FUNCTIONS.items():
            for function in functions:
                value = row[f"{field}_{function}"]
                shown = [r.members.get(field) for r in ordered]
                assert expected(field, function, ordered)(value), (how, key, field, function, value, shown)


def compare_further(got: dict[Any, dict[str, Any]], want: Windows, how: str) -> None:
    """The further functions, by the model that drawn pipelines are held to."""
    assert set(got) == set(want), how
    for key, records in want.items():
        row = got[key]
        events = [dict(r.members) for r in sorted(records, key=lambda r: (r.members["ts"], r.o))]
        for members in events:  # 1 is a number, too, and zero has no sign
            members["v"] = None if members.get("v") is None else float(members["v"]) + 0.0
        start, end = (dt.datetime.fromisoformat(row[name]) for name in ("window_start", "window_end"))
        for metric in FURTHER:
            cell = metric_cell(metric, TYPES, events, (end - start) // dt.timedelta(milliseconds=1))
            value = moment(row[metric["name"]], metric)
            assert cell.fits(value), (how, key, metric, value, cell.shown, events)


def moment(value: Any, metric: dict[str, Any]) -> Any:
    """Times of answers as events have them."""
    if metric.get("field") != "at" or not isinstance(value, str):
        return value
    return (dt.datetime.fromisoformat(value) - dt.datetime(1970, 1, 1, tzinfo=dt.UTC)) // dt.timedelta(milliseconds=1)


def cut(records: Iterable[Record], group: tuple[str, ...], size: int, hop: int) -> Windows:
    found: Windows = defaultdict(list)
    for record in records:
        newest = record.members["ts"] // hop * hop
        for start in range(newest - size + hop, newest + 1, hop):
            found[(*(record.members.get(name) for name in group), rfc3339_ms(start))].append(record)
    return found


def visits(records: Iterable[Record]) -> Windows:
    """Sessions: 25 s of silence end one, and so does each second minute."""
    groups: dict[Any, list[Record]] = defaultdict(list)
    for record in records:
        groups[record.members.get("k")].append(record)
    found: Windows = defaultdict(list)
    for k, own in groups.items():
        start, end = 0, -1
        for record in sorted(own, key=lambda r: r.members["ts"]):
            time = record.members["ts"]
            if time >= end:
                start = time
            end = min(time + 25_000, (time // (2 * MINUTE) + 1) * 2 * MINUTE)
            found[k, rfc3339_ms(start)].append(record)
    return found


# --- what is drawn ---------------------------------------------------------------------------------------------------

DOUBLES = st.floats(allow_nan=False, allow_infinity=False)
NAMED = st.sampled_from(
    [0.0, -0.0, TINIEST, -TINIEST, 1e-310, 2.3e-308, 1e-200, 1e-162, 1e-155, 1e9, 1e140, 1e150, 1e154, -1e155, 1e170,
     1e172, 1e200, 1e290, -1e300, 1.5e308, -1.5e308, LARGEST, -LARGEST, math.nextafter(LARGEST, 0)]
)  # fmt: skip
BALANCES = st.integers(-5, 5).map(lambda n: 1_234_567_890.12 + n / 1000)
NEIGHBOURS = st.builds(
    lambda value, n: value + n * math.ulp(value),
    st.sampled_from([1e-300, 1.0, 1e9, 1e140, 1e155, 1e160, 1e171, 1.7e308]),
    st.integers(-9, 9),
)
INTEGERS = st.integers(-(2**63), 2**63 - 1)
EDGES = st.builds(
    lambda edge, n: max(-(2**63), min(2**63 - 1, edge + n)),
    st.sampled_from([0, 2**53, -(2**53), 2**62, 2**63 - 1, -(2**63)]),
    st.integers(-4, 4),
)
# What looks like seconds is refused.
TIMES = st.integers(-6 * 10**12, 9 * 10**12).filter(lambda at: not SECONDS_FROM <= at <= SECONDS_TO)


def pool(*kinds: st.SearchStrategy[Any]) -> st.SearchStrategy[list[Any]]:
    """A few values of one kind, or of several: some of them will be equal."""
    return st.one_of(
        *(st.lists(kind, min_size=1, max_size=4) for kind in kinds), st.lists(st.one_of(*kinds), min_size=2)
    )


POOLS = st.fixed_dictionaries(
    {
        "v": pool(DOUBLES, NAMED, BALANCES, NEIGHBOURS),
        "i": pool(INTEGERS, EDGES, st.integers(-3, 3)),
        "b": st.just([True, False]),
        "s": pool(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=3)),
        "at": pool(TIMES),
    }
)
# More than the largest double by so little that it is their sum.
JUST_BEYOND = {"v": [LARGEST, 1.0], "i": [1], "b": [True], "s": [""], "at": [0]}
PLACE = st.integers(0, 2**16)
EVENT = st.tuples(st.integers(0, 300), st.sampled_from(["a", "b", None]), *(PLACE for _ in FUNCTIONS))
BATCH = st.tuples(st.lists(EVENT, min_size=1, max_size=12), st.none() | st.integers(1, 5))


def event(pools: dict[str, list[Any]], second: int, k: str | None, *places: int) -> Event:
    """The drawn places say which values of the pools it has; every seventh is null."""
    members: Event = {"ts": BASE + second * 1_000, "k": k}
    for (field, values), place in zip(pools.items(), places, strict=True):
        members[field] = None if place % 7 == 6 else values[place % len(values)]
    return members


# --- the test --------------------------------------------------------------------------------------------------------


MORE_OF = {"tumbling": "more", "hopping": "more_hopping"}


class Stage:
    """The pipeline's tables, and what has been committed."""

    def __init__(self, connection: psycopg.Connection[Any], database: Database) -> None:
        self.connection, self.database = connection, database
        self.stores = database.aggregations(connection)
        self.committer = Committer(connection, database, self.stores, CONFIG)
        self.reader, self.model = BatchReader(SPEC), PipelineModel(CONFIG)
        self.records: list[Record] = []
        self.position = Position(0, 0)

    def wipe(self) -> Stage:
        schema = self.database.schema
        tables = ", ".join(f"{schema}.{store.table}" for store in self.stores)
        self.connection.execute(f"TRUNCATE {tables}, {schema}._dead_letters, {schema}._corrections")
        self.connection.execute(f"UPDATE {schema}._aggregations SET closed_until = NULL")
        self.records = []
        return self

    def commit(self, *events: Event) -> None:
        at = self.position.next_offset
        records = [Record(at + n, members) for n, members in enumerate(events)]
        read = self.reader.read(records, BASE + 60 * MINUTE)
        assert not read.dead
        self.position = self.committer.commit(read, {0: self.position}).positions[0]
        self.records += records

    def close(self, until: int) -> None:
        update = f"UPDATE {self.database.schema}._aggregations SET closed_until = greatest(closed_until, %s)"
        self.connection.execute(update, (until,))

    def windows(self, name: str) -> dict[Any, dict[str, Any]]:
        """As the results topic tells them."""
        store = next(store for store in self.stores if store.name == name)
        with self.connection.transaction():
            rows = list(
                WindowReader(self.database, store).read(self.connection, BASE - 60 * MINUTE, BASE + 60 * MINUTE)
            )
        return {(*(row[group] for group in store.spec.group_by), row["window_start"]): row for row in rows}

    def ask(self, name: str, text: str = "") -> dict[Any, dict[str, Any]]:
        """As the API answers."""
        query, binder = take_query(self.model.aggregation(name), Parameters.from_query(text.encode())), Binder()
        rows = self.connection.execute(statement(query, binder, None), binder.values).fetchall()
        writer = NdjsonWriter(query.columns)
        found = [json.loads(writer.batch([row])) for row in rows]
        return {(*(row[group] for group in query.group_by), row["window_start"]): row for row in found}

    def verify(self) -> None:
        for name, size, hop in (("tumbling", MINUTE, MINUTE), ("hopping", 3 * MINUTE, MINUTE)):
            want = cut(self.records, ("k",), size, hop)
            compare(self.windows(name), want, f"{name} in results")
            compare(self.ask(name), want, f"{name} of the API")
            compare(self.ask(name, "group_by="), cut(self.records, (), size, hop), f"{name} in fewer groups")
            hour = cut(self.records, (), 60 * MINUTE, 60 * MINUTE)
            compare(self.ask(name, "group_by=&granularity=1h"), hour, f"{name} in coarser time")
            for metric in ("v_sum", "v_avg", "v_variance", "v_stddev", "i_sum", "i_avg", "i_variance"):
                filtered = self.ask(name, f"{metric}__gte=0&order=-{metric}&group_by=&metrics={metric}")
                assert all(row[metric] >= 0 for row in filtered.values())
            compare_further(self.windows(MORE_OF[name]), want, f"{name}, further functions in results")
            compare_further(self.ask(MORE_OF[name]), want, f"{name}, further functions of the API")
            compare_further(self.ask(MORE_OF[name], "group_by=&granularity=1h"), hour, f"{name}, further, coarser")
        compare_further(self.windows("more_visits"), visits(self.records), "sessions, further functions")
        compare(self.windows("visits"), visits(self.records), "sessions in results")
        compare(self.ask("visits"), visits(self.records), "sessions of the API")
        compare(self.ask("by_number"), cut(self.records, ("v", "i"), 60 * MINUTE, 60 * MINUTE), "grouped by number")


@pytest.fixture
def stage(make_schema: Callable[[PipelineConfig], Any], monkeypatch: pytest.MonkeyPatch) -> Stage:
    monkeypatch.setattr(merging, "SKETCH_BYTES", 400)
    return Stage(*make_schema(CONFIG))


@settings(max_examples=EXAMPLES, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(POOLS, st.lists(BATCH, min_size=1, max_size=5))
@example(JUST_BEYOND, [([(0, "a", 0, 0, 0, 0, 0), (1, "a", 1, 0, 0, 0, 0)], None)])
def test_any_finite_values_are_counted_and_answered(
    stage: Stage, pools: dict[str, list[Any]], batches: list[tuple[list[Any], int | None]]
) -> None:
    """Also late ones that reopen windows, those that join sessions, and whatever of it is put together again."""
    stage.wipe()
    for events, closed in batches:
        stage.commit(*(event(pools, *drawn) for drawn in events))
        if closed is not None:
            stage.close(BASE + closed * MINUTE)
    stage.verify()


def single(minute: float, v: float | None = None, i: int | None = None, k: str = "a") -> Event:
    return {"ts": BASE + round(minute * MINUTE), "k": k, "v": v, "i": i}


def seen(stage: Stage, name: str, metric: str, text: str = "") -> dict[Any, Any]:
    """Metric by group, and by minute of the window's start."""
    starts = {rfc3339_ms(BASE + n * MINUTE): n for n in range(-5, 60)}
    return {(*key[:-1], starts[key[-1]]): row[metric] for key, row in stage.ask(name, text).items()}


def test_one_huge_price_costs_one_metric_of_its_windows(stage: Stage) -> None:
    """The sum is there in the window where it is finite; the count, the least, other groups and windows are right."""
    stage.commit(single(4, 100.0), single(4.5, 10.0, k="b"), single(5, 1.5e308))
    stage.commit(single(6, 1.5e308), single(6.5, 11.0, k="b"), single(9, 12.0, k="b"))
    assert seen(stage, "tumbling", "v_sum")["a", 5] == 1.5e308
    assert {start: value for (k, start), value in seen(stage, "hopping", "v_sum").items() if k == "a"} == {
        2: 100.0, 3: 1.5e308, 4: None, 5: None, 6: 1.5e308,
    }  # fmt: skip
    assert seen(stage, "hopping", "v_variance")["a", 4] is None
    assert seen(stage, "hopping", "v_stddev")["a", 6] == 0
    assert seen(stage, "hopping", "v_max")["a", 4] == 1.5e308
    assert seen(stage, "hopping", "n")["a", 4] == 3
    assert seen(stage, "hopping", "v_sum")["b", 4] == 21.0
    stage.verify()


NAMED_CASES: list[tuple[list[list[float]], dict[str, float | None]]] = [
    ([[1e300], [1e300]], {"v_sum": 2e300, "v_avg": 1e300, "v_variance": 0, "v_stddev": 0}),
    ([[1.7e308, 1.7e308, -1.7e308], [-1.6e308]], {"v_sum": 1.7e308 - 1.6e308, "v_variance": None}),
    ([[1e200], [-1e200]], {"v_sum": 0, "v_avg": 0, "v_variance": None, "v_stddev": None}),
    ([[1e150], [-1e150]], {"v_variance": 1e300, "v_stddev": 1e150}),
    ([[LARGEST], [LARGEST]], {"v_sum": None, "v_avg": None, "v_variance": 0, "v_max": LARGEST}),
    ([[LARGEST], [0.0], [1.0]], {"v_sum": LARGEST, "v_variance": None}),
    ([[5e-324], [5e-324]], {"v_sum": 1e-323, "v_avg": 5e-324, "v_variance": 0}),
    ([[5e-324], [0.0], [0.0]], {"v_sum": 5e-324, "v_avg": 0, "v_variance": 0, "v_stddev": 0}),
    ([[1e-200], [3e-200]], {"v_sum": 4e-200, "v_variance": 0}),
    ([[0.1, 0.1, 0.1], [0.1], [0.1] * 7], {"v_variance": 0, "v_stddev": 0}),
]


def test_named_values_merged_and_rolled_up(stage: Stage) -> None:
    """The same in one window, in a window of several panes and in a roll-up."""
    for batches, answers in NAMED_CASES:
        stage.wipe()
        for n, values in enumerate(batches):
            stage.commit(*(single(minute, value) for value in values for minute in (0, 30 + n)))
        for name, text, key in (
            ("tumbling", "", ("a", 0)), ("hopping", "", ("a", 30)), ("tumbling", "granularity=30m", ("a", 30)),
        ):  # fmt: skip
            for metric, value in answers.items():
                got = seen(stage, name, metric, text)[key]
                assert got == (pytest.approx(value, rel=1e-9) if value else value), (batches, metric, name, text)


def test_an_event_that_joins_sessions_of_huge_values(stage: Stage) -> None:
    stage.commit(single(0, 1.5e308), single(0.6, 1.5e308))
    stage.commit(single(0.3, 1.0))
    (row,) = stage.windows("visits").values()
    assert (row["n"], row["v_sum"], row["v_min"]) == (3, None, 1.0)
    stage.verify()


def test_the_variance_of_balances_over_many_batches_and_panes(stage: Stage) -> None:
    """1e9 and a few cents: one double for the mean is off by more than that."""
    rnd = random.Random(7)
    for _ in range(60):
        stage.commit(*(single(rnd.randrange(180) / 60, round(rnd.gauss(1e9, 0.01), 3)) for _ in range(5)))
    stage.verify()


def test_integers_that_are_no_doubles(stage: Stage) -> None:
    for n in (9007199254740993, 9007199254740992, 9007199254740995):
        stage.commit(single(0, i=n), single(n % 3 + 10, i=n))
    for name, start in (("tumbling", 0), ("hopping", 10)):
        row = {metric: seen(stage, name, metric)["a", start] for metric in ("i_quantile", "i_variance", "i_max")}
        assert row == {
            "i_quantile": 9007199254740995,
            "i_variance": pytest.approx(14 / 9, rel=1e-12),
            "i_max": 9007199254740995,
        }
    stage.commit(single(0, i=5), *(single(0, i=2**63 - 1 - n) for n in range(5)))
    stage.verify()


def test_rows_from_before_there_was_a_low_part(stage: Stage) -> None:
    stage.commit(*(single(0, v, v) for v in (1, 2, 3)))
    for store in (store for store in stage.stores if store.name not in (*MORE_OF.values(), "more_visits")):
        stage.connection.execute(
            f"UPDATE {stage.database.schema}.{store.table} SET _low_v = NULL, _low_i = NULL, _low_b = NULL"
        )
    stage.commit(*(single(n, v, v) for n, v in ((0, 7), (1, 8))))
    stage.verify()


def test_zero_is_one_group_whatever_its_sign(stage: Stage) -> None:
    """Also where rows that are filled in have to find the others."""
    stage.commit(single(0, -0.0, 1))
    stage.commit(single(0, 0.0, 1))
    found = stage.ask("by_number", f"fill=zero&granularity=1h&from={BASE}&to={BASE + 60 * MINUTE}&metrics=n")
    assert [row["n"] for row in found.values()] == [2]
