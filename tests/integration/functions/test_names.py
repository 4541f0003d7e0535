"""Names that mean something elsewhere, on a real Postgres: every one that is valid works in every place.

As fields, group columns, metrics and aggregations: keywords and system columns of Postgres, keywords of Python, the
API's parameters, names of our own columns and aliases, and names that differ in little.
"""

from __future__ import annotations

import datetime as dt
import json
import keyword
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import psycopg
import pytest

from kafka_records import KafkaRecord
from tidemill_api.catalog import PipelineModel
from tidemill_api.live.database_reads import _changed_sql, _latest
from tidemill_api.live.query import RESERVED as LIVE_PARAMETERS
from tidemill_api.query.aggregate import RESERVED as PARAMETERS
from tidemill_api.query.aggregate import take_query
from tidemill_api.query.pages import State
from tidemill_api.query.parameters import Parameters
from tidemill_api.query.selection import Binder
from tidemill_api.query.sql import statement
from tidemill_contract.functions.feeds import Feeds
from tidemill_contract.functions.partials import quote
from tidemill_contract.resource.name_rules import SYSTEM_COLUMNS
from tidemill_contract.resource.rules import RESERVED
from tidemill_contract.resource.spec import PipelineSpec
from tidemill_contract.resource.validate import check
from tidemill_contract.runtime import AggregationRef, PipelineConfig, PostgresCredentials, WorkloadSettings
from tidemill_contract.times import rfc3339, rfc3339_ms
from tidemill_operator.actuators.base import PipelineSecrets
from tidemill_operator.actuators.postgres.schema import PostgresSchemas
from tidemill_operator.errors import Reason
from tidemill_operator.outcome import Outcome, Rank
from tidemill_operator.plan.live import Owner
from tidemill_operator.plan.postgres.schema import desired_schema
from tidemill_processor.batches.reader import BatchReader
from tidemill_processor.database import Database
from tidemill_processor.transaction import Committer, Position
from tidemill_processor.windows.reader import WindowReader

pytestmark = pytest.mark.integration

MINUTE = 60_000
BASE = 1_700_000_000_000 // (4 * MINUTE) * 4 * MINUTE
EDGES = {f"{pair[0]}={pair[1]}" for pair in (("from", BASE), ("to", BASE + 4 * MINUTE))}


@dataclass(frozen=True)
class Record(KafkaRecord):
    p = 0
    o: int
    members: dict[str, Any]

    def value(self) -> bytes:
        return json.dumps(self.members).encode()


class Named:
    """A pipeline's schema, as the operator makes it, filled and asked without servers but Postgres."""

    def __init__(self, servers: Any, admin: psycopg.Connection[Any], name: str, spec: dict[str, Any]) -> None:
        self.admin, self.offset = admin, 0
        model = PipelineSpec.model_validate(spec)
        refs = tuple(AggregationRef(name=a.name) for a in model.aggregations)
        self.config = PipelineConfig(namespace="names", name=name, generation=1, spec=model, aggregations=refs)
        self.made = self._ensure(servers)
        admin.execute("DISCARD TEMP")  # what is called batch_1 was another schema's
        if self.made.rank == Rank.DONE:
            self.schema = quote(self.config.schema_name)
            admin.execute(f"UPDATE {self.schema}._offsets SET topic_id = 'x', next_offset = 0".encode())
            self.database = Database(WorkloadSettings(), self.config, 10)
            self.stores = self.database.aggregations(admin)
            self.committer = Committer(admin, self.database, self.stores, self.config)
            self.api = PipelineModel(self.config)

    def _ensure(self, servers: Any) -> Outcome:
        schema = desired_schema(self.config)
        self.admin.execute(f"DROP SCHEMA IF EXISTS {quote(schema.name)} CASCADE".encode())
        logins = PipelineSecrets(
            PostgresCredentials(user=schema.writer, password="w"), PostgresCredentials(user=schema.reader, password="r")
        )
        owner = Owner("names", self.config.name, "uid-1", "local")
        (made,) = PostgresSchemas(servers.postgres).ensure(schema, owner=owner, secrets=logins, adopt=True)
        return made

    def commit(self, events: list[dict[str, Any]]) -> None:
        """Store events as one batch."""
        records = [Record(self.offset + n, event) for n, event in enumerate(events)]
        batch = BatchReader(self.config.spec).read(records, BASE + 86_400_000)
        assert not batch.dead
        self.committer.commit(batch, {0: Position(self.offset, 0)})
        self.offset += len(records)

    def ask(self, name: str, text: str = "") -> list[dict[str, Any]]:
        """The API's rows."""
        query, binder = take_query(self.api.aggregation(name), Parameters.from_query(text.encode())), Binder()
        found = self.admin.execute(statement(query, binder, None).encode(), binder.values).fetchall()
        names = [column.name for column in query.columns]
        return [dict(zip(names, row, strict=True)) for row in found]

    def read(self, name: str) -> list[dict[str, Any]]:
        """The windows as they are published."""
        store = next(store for store in self.stores if store.name == name)
        with self.admin.transaction():
            return list(WindowReader(self.database, store).read(self.admin, BASE - 9 * MINUTE, BASE + 9 * MINUTE))

    def changed(self, name: str, rev: int) -> list[dict[str, Any]]:
        """The windows that live listeners are told to have changed after a revision."""
        query, binder = _latest(self.api.aggregation(name), (), 100), Binder()
        times = [dt.datetime.fromtimestamp((BASE + minutes * MINUTE) / 1000, dt.UTC) for minutes in (-9, 9)]
        text = _changed_sql(query, State("x", 9, None, None, Feeds()), binder, f"_rev > {rev}", *times)
        names = [column.name for column in query.columns]
        found = [dict(zip(names, row, strict=True)) for row in self.admin.execute(text.encode(), binder.values)]
        # Sessions that have joined another one are among them, empty.
        return [row for row in found if row["window_start"] != row["window_end"]]


@pytest.fixture
def make(servers: Any, admin: psycopg.Connection[Any]) -> Callable[[str, dict[str, Any]], Named]:
    return lambda name, spec: Named(servers, admin, name, spec)


def cut(words: Sequence[str], size: int) -> list[tuple[str, ...]]:
    """The words in pieces of that many."""
    return [tuple(words[first : first + size]) for first in range(0, len(words), size)]


FIELDS = ("home", "at_home", "at_at_home", "at_" + "x" * 38, "start__", "end__", "since__", "rev__")
FUNCTIONS = ("first", "last", "min", "max")
# Parameters, aliases, SQL, and such as are another column's filter by their name.
METRICS = (
    *PARAMETERS, *LIVE_PARAMETERS, *SYSTEM_COLUMNS, "a", "a__in", "a__gte", "class", "d", "t", "g", "q", "p", "r", "w",
    "count", "finish",
)  # fmt: skip
MEANT = dict(
    zip([m for m in METRICS if m != "closed"], [(f, field) for field in FIELDS for f in FUNCTIONS], strict=False)
)
WINDOWS: dict[str, dict[str, Any]] = {
    "tumbling": {"window": {"type": "tumbling", "size": "1m"}},
    "hopping": {"window": {"type": "hopping", "size": "2m", "hop": "1m"}},
    "visits": {"window": {"type": "session", "gap": "20s"}},
    "again": {"window": {"type": "tumbling", "size": "1m"}, "latePolicy": "reopen"},
}


def adversarial() -> dict[str, Any]:
    metrics = [{"name": name, "function": f, "field": field} for name, (f, field) in MEANT.items()]
    fields = [{"name": "ts", "type": "timestamp", "required": True}, {"name": "start", "type": "string"}]
    fields += [{"name": name, "type": "number"} for name in (*FIELDS, "n")]
    return {
        "source": {"topic": {"partitions": 1}, "fields": fields, "eventTime": {"field": "ts"}},
        "aggregations": [
            {"name": name, "groupBy": ["start", "n"], "metrics": metrics, **further}
            for name, further in WINDOWS.items()
        ],
    }


def event(number: int) -> dict[str, Any]:
    """Fields differ from each other and over time; events come in no order within a minute."""
    at = BASE + number % 4 * MINUTE + (number * 7) % 10 * 1_000 + number
    values = {field: float((number * 31 + place * 17) % 101) for place, field in enumerate(FIELDS)}
    return {"ts": at, "start": "ab"[number % 3 % 2], "n": float(number % 2), **values}


def answered(events: list[dict[str, Any]]) -> dict[str, float]:
    """All metrics of a window, counted plainly."""
    ordered = sorted(events, key=lambda one: one["ts"])
    take = {
        "first": lambda found: found[0],
        "last": lambda found: found[-1],
        "min": min,
        "max": max,
    }
    return {name: take[f]([one[field] for one in ordered]) for name, (f, field) in MEANT.items()}  # type: ignore[operator]


def by(events: list[dict[str, Any]], *keys: str, minutes: int = 1) -> dict[tuple[Any, ...], dict[str, float]]:
    """What windows of one minute (or more that begin with each) hold, by group columns and minute."""
    found = defaultdict(list)
    for one in events:
        minute = (one["ts"] - BASE) // MINUTE
        for first in range(minute - minutes + 1, minute + 1):
            found[(*(one[key] for key in keys), first)].append(one)
    return {key: answered(events) for key, events in found.items()}


def told(rows: list[dict[str, Any]], *keys: str) -> dict[tuple[Any, ...], dict[str, float]]:
    found = {}
    for row in rows:
        start = row["window_start"]
        moment = dt.datetime.fromisoformat(start) if isinstance(start, str) else start
        minute = int(moment.timestamp() * 1000 - BASE) // MINUTE
        found[(*(row[key] for key in keys), minute)] = {name: row[name] for name in MEANT}
    return found


def test_names_that_differ_in_little_are_told_apart(make: Any) -> None:
    """Merged over batches, composed, rolled up, published and told live: each metric is of its own field."""
    assert not check({"apiVersion": "tidemill.dev/v1alpha1", "kind": "AnalyticsPipeline", "metadata": {"name": "x"},
                      "spec": adversarial()})[1]  # fmt: skip
    named, events = make("adversarial", adversarial()), [event(number) for number in range(48)]
    named.commit(events[:20])
    named.commit(events[20:])
    groups = ("start", "n")
    for name in WINDOWS:
        minutes = 2 if name == "hopping" else 1
        wanted = by(events, *groups, minutes=minutes)
        assert told(named.ask(name, "limit=1000"), *groups) == wanted, name
        assert told(named.read(name), *groups) == wanted, name
        assert told(named.changed(name, 1), *groups).items() <= wanted.items(), name
        assert told(named.changed(name, 0), *groups) == wanted, name
        some = {key: row for key, row in wanted.items() if row["a__in"] == 1.0 or key[0] == "a"}
        both = named.ask(name, "start=a&n__gte=0&limit=1000")
        assert told(both, *groups) == {key: row for key, row in some.items() if key[0] == "a"}, name
    for name in ("tumbling", "hopping", "again"):
        minutes = 2 if name == "hopping" else 1
        assert told(named.ask(name, "group_by="), *()) == by(events, minutes=minutes)
        (everything,) = named.ask(name, "granularity=all&group_by=")
        assert {metric: everything[metric] for metric in MEANT} == answered(events)
        bucketed = {k: v for k, v in by(events, "start", minutes=2).items() if k[-1] % 2 == 0}
        assert told(named.ask(name, "granularity=2m&group_by=start"), "start") == bucketed


def test_filters_order_and_fill_take_every_name(make: Any) -> None:
    """A column's own name comes before another column's with an operator; reserved ones are asked with `__eq`."""
    named, events = make("asked", adversarial()), [event(number) for number in range(48)]
    named.commit(events)
    wanted = by(events, "start", "n")
    for name in MEANT:
        value = min(row[name] for row in wanted.values())
        found = named.ask("tumbling", f"{name}__eq={value}&order={name},-start&limit=1000")
        assert told(found, "start", "n") == {key: row for key, row in wanted.items() if row[name] == value}, name
        ordered = [row[name] for row in named.ask("tumbling", f"order=-{name}&limit=1000")]
        assert ordered == sorted(ordered, reverse=True)
    edges = sorted({row["a__in"] for row in wanted.values()})
    exact = named.ask("tumbling", f"a__in={edges[1]}&limit=1000")
    assert told(exact, "start", "n") == {key: row for key, row in wanted.items() if row["a__in"] == edges[1]}
    filled = named.ask("hopping", f"fill=zero&limit=1000&{'&'.join(sorted(EDGES))}")
    composed = {key: row for key, row in by(events, "start", "n", minutes=2).items() if 0 <= key[-1] < 4}
    assert {key: row for key, row in told(filled, "start", "n").items() if key in composed} == composed


def keywords(admin: psycopg.Connection[Any]) -> list[str]:
    """Every word that means something to Postgres, Python or a struct, as far as it is a legal name."""
    words = {word for (word,) in admin.execute("SELECT word FROM pg_get_keywords()")}
    words |= {*keyword.kwlist, *keyword.softkwlist, *dir(msgspec.Struct), *dir(object), *SYSTEM_COLUMNS, *PARAMETERS}
    words |= {"a", "z" * 41, "x1__", "oid", "self", "cls", "pg_class", "batch_1", "excluded", "value", "le", "quantile"}
    return sorted(word for word in words if word.islower() and word[0].isalpha() and word not in RESERVED)


def spelt(words: tuple[str, ...]) -> dict[str, Any]:
    """A pipeline in which each word is a field, a group column, a metric, an aggregation and part of an expression."""
    groups = cut([word for word in words if word not in SYSTEM_COLUMNS], 8)
    fields = [{"name": "ts", "type": "timestamp", "required": True}]
    fields += [{"name": word, "type": "integer"} for word in words]
    aggregations = []
    for number, columns in enumerate(groups):
        own = words[number * 8 : number * 8 + 8]
        metrics = [{"name": m, "function": "last", "field": m} for m in own if m not in columns]
        metrics += [{"name": "total__", "function": "sum", "field": f"derived_{number}"}]
        aggregations.append({
            "name": columns[0], "groupBy": list(columns), "metrics": metrics,
            "window": {"type": "tumbling", "size": "1m"} if number % 3 else {"type": "session", "gap": "1m"},
        })  # fmt: skip
    derives = [
        {"name": f"derived_{number}", "expression": " + ".join(f'"{column}"' for column in columns)}
        for number, columns in enumerate(groups)
    ]
    return {
        "source": {"topic": {"partitions": 1}, "fields": fields, "eventTime": {"field": "ts"}},
        "transform": {"derive": derives},
        "events": {"store": True},
        "aggregations": aggregations,
    }


def test_every_keyword_is_a_name(make: Any, admin: psycopg.Connection[Any]) -> None:
    """What validates can be made, filled and asked for."""
    words = keywords(admin)
    assert len(words) > 450
    for number, some in enumerate(cut(words, 120)):
        spec = spelt(some)
        document = {"apiVersion": "tidemill.dev/v1alpha1", "kind": "AnalyticsPipeline", "metadata": {"name": "x"}}
        assert check({**document, "spec": spec})[1] == []
        named = make(f"keywords-{number}", spec)
        assert named.made.rank == Rank.DONE, named.made
        values = {word: place for place, word in enumerate(some)}
        named.commit([{"ts": BASE + second, **values} for second in range(2)])
        for aggregation in named.config.spec.aggregations:
            (row,) = named.ask(aggregation.name, "&".join(f"{g}__eq={values[g]}" for g in aggregation.group_by))
            total = sum(values[group] for group in aggregation.group_by)
            expected = {name: values[name] for name in row if name in values} | {"total__": 2 * total}
            assert {name: row[name] for name in expected} == expected
            (published,) = named.read(aggregation.name)
            assert {name: published[name] for name in expected} == expected
            assert published["window_start"] == rfc3339(row["window_start"]) == rfc3339_ms(BASE)


def test_system_columns_are_those_of_postgres(admin: psycopg.Connection[Any]) -> None:
    rows = admin.execute("SELECT attname FROM pg_attribute WHERE attrelid = 'pg_class'::regclass AND attnum < 0")
    assert {name for (name,) in rows} == set(SYSTEM_COLUMNS)


@pytest.mark.parametrize("column", SYSTEM_COLUMNS)
def test_a_system_column_is_refused_as_group_and_works_by_the_remedy(make: Any, column: str) -> None:
    """Also where validation does not know it: the outcome names the aggregation and the column."""
    spec: dict[str, Any] = {
        "source": {
            "topic": {"partitions": 1},
            "fields": [{"name": "ts", "type": "timestamp", "required": True}, {"name": column, "type": "integer"}],
            "eventTime": {"field": "ts"},
        },
        "aggregations": [
            {
                "name": "rows",
                "groupBy": [column],
                "window": {"type": "tumbling", "size": "1m"},
                "metrics": [{"name": "events", "function": "count"}],
            }
        ],
    }
    document = {"apiVersion": "tidemill.dev/v1alpha1", "kind": "AnalyticsPipeline", "metadata": {"name": "x"}}
    (fault,) = check({**document, "spec": spec})[1]
    assert fault.path == "spec.aggregations[0].groupBy[0]"
    assert f"{{name: by_{column}, expression: {column}}}" in str(fault)
    unmade = make("system", spec).made
    assert (unmade.rank, unmade.reason) == (Rank.FAILED, Reason.NOT_SUPPORTED)
    assert "spec.aggregations[rows]" in unmade.message
    assert f'"{column}"' in unmade.message

    spec["transform"] = {"derive": [{"name": f"by_{column}", "expression": column}]}
    spec["aggregations"][0]["groupBy"] = [f"by_{column}"]
    assert check({**document, "spec": spec})[1] == []
    named = make("system", spec)
    named.commit([{"ts": BASE, column: 7}])
    (row,) = named.ask("rows")
    assert (row[f"by_{column}"], row["events"]) == (7, 1)
