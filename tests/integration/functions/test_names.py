"""Tests of names with another meaning in Postgres, Python or the API: each valid name works in every place.

The tests use them as names of fields, group columns, metrics and aggregations, on a real Postgres. Other names look
like the columns and aliases of Tidemill, or differ in a few characters.
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
from tidemill_api.live.database_reads import _changed_sql, _latest_query
from tidemill_api.live.query import RESERVED as LIVE_PARAMETERS
from tidemill_api.query.aggregate import RESERVED as PARAMETERS
from tidemill_api.query.aggregate import parse_query
from tidemill_api.query.pages import AggregationState
from tidemill_api.query.parameters import Parameters
from tidemill_api.query.selection import Binder
from tidemill_api.query.sql import statement
from tidemill_contract.functions.fill_history import FillHistory
from tidemill_contract.functions.partials import quote
from tidemill_contract.resource.name_rules import SYSTEM_COLUMNS
from tidemill_contract.resource.rules import RESERVED_COLUMNS
from tidemill_contract.resource.spec import PipelineSpec
from tidemill_contract.resource.validate import check_document
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
    """A pipeline whose schema the operator creates; batches and queries need only Postgres."""

    def __init__(self, servers: Any, admin: psycopg.Connection[Any], name: str, spec: dict[str, Any]) -> None:
        self.admin, self.offset = admin, 0
        model = PipelineSpec.model_validate(spec)
        refs = tuple(AggregationRef(name=a.name) for a in model.aggregations)
        self.config = PipelineConfig(namespace="names", name=name, generation=1, spec=model, aggregations=refs)
        self.outcome = self._ensure(servers)
        admin.execute("DISCARD TEMP")  # the temporary table batch_1 is of another schema
        if self.outcome.rank == Rank.DONE:
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
        (outcome,) = PostgresSchemas(servers.postgres).ensure(schema, owner=owner, secrets=logins, adopt=True)
        return outcome

    def commit(self, events: list[dict[str, Any]]) -> None:
        """Commit events as one batch."""
        records = [Record(self.offset + n, event) for n, event in enumerate(events)]
        batch = BatchReader(self.config.spec).read(records, BASE + 86_400_000)
        assert not batch.dead_letters
        self.committer.commit(batch, {0: Position(self.offset, 0)})
        self.offset += len(records)

    def ask(self, name: str, text: str = "") -> list[dict[str, Any]]:
        """Return the API's answer to a query of an aggregation."""
        query, binder = parse_query(self.api.aggregation(name), Parameters.from_query(text.encode())), Binder()
        rows = self.admin.execute(statement(query, binder, None).encode(), binder.values).fetchall()
        names = [column.name for column in query.columns]
        return [dict(zip(names, row, strict=True)) for row in rows]

    def read(self, name: str) -> list[dict[str, Any]]:
        """Return the windows of an aggregation as the results topic has them."""
        store = next(store for store in self.stores if store.name == name)
        with self.admin.transaction():
            return list(WindowReader(self.database, store).read(self.admin, BASE - 9 * MINUTE, BASE + 9 * MINUTE))

    def changed(self, name: str, rev: int) -> list[dict[str, Any]]:
        """Return the windows that live changes send after a revision."""
        query, binder = _latest_query(self.api.aggregation(name), (), 100), Binder()
        times = [dt.datetime.fromtimestamp((BASE + minutes * MINUTE) / 1000, dt.UTC) for minutes in (-9, 9)]
        text = _changed_sql(query, AggregationState("x", 9, None, None, FillHistory()), binder, f"_rev > {rev}", *times)
        names = [column.name for column in query.columns]
        rows = [dict(zip(names, row, strict=True)) for row in self.admin.execute(text.encode(), binder.values)]
        # A session that was joined to another is sent as an empty window.
        return [row for row in rows if row["window_start"] != row["window_end"]]


@pytest.fixture
def make(servers: Any, admin: psycopg.Connection[Any]) -> Callable[[str, dict[str, Any]], Named]:
    return lambda name, spec: Named(servers, admin, name, spec)


def cut(words: Sequence[str], size: int) -> list[tuple[str, ...]]:
    """Cut words into pieces of this size."""
    return [tuple(words[first : first + size]) for first in range(0, len(words), size)]


FIELDS = ("home", "at_home", "at_at_home", "at_" + "x" * 38, "start__", "end__", "since__", "rev__")
FUNCTIONS = ("first", "last", "min", "max")
# Parameters of the API, aliases and words of SQL, and names that look like filters of other columns.
METRICS = (
    *PARAMETERS, *LIVE_PARAMETERS, *SYSTEM_COLUMNS, "a", "a__in", "a__gte", "class", "d", "t", "g", "q", "p", "r", "w",
    "count", "finish",
)  # fmt: skip
FUNCTION_OF = dict(
    zip([m for m in METRICS if m != "closed"], [(f, field) for field in FIELDS for f in FUNCTIONS], strict=False)
)
WINDOWS: dict[str, dict[str, Any]] = {
    "tumbling": {"window": {"type": "tumbling", "size": "1m"}},
    "hopping": {"window": {"type": "hopping", "size": "2m", "hop": "1m"}},
    "visits": {"window": {"type": "session", "gap": "20s"}},
    "again": {"window": {"type": "tumbling", "size": "1m"}, "latePolicy": "reopen"},
}


def adversarial() -> dict[str, Any]:
    metrics = [{"name": name, "function": f, "field": field} for name, (f, field) in FUNCTION_OF.items()]
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
    """Return an event; its fields have different values, and its time is out of order within a minute."""
    at = BASE + number % 4 * MINUTE + (number * 7) % 10 * 1_000 + number
    values = {field: float((number * 31 + place * 17) % 101) for place, field in enumerate(FIELDS)}
    return {"ts": at, "start": "ab"[number % 3 % 2], "n": float(number % 2), **values}


def computed(events: list[dict[str, Any]]) -> dict[str, float]:
    """Return all metrics over these events, computed in plain Python."""
    ordered = sorted(events, key=lambda event: event["ts"])
    take = {
        "first": lambda values: values[0],
        "last": lambda values: values[-1],
        "min": min,
        "max": max,
    }
    return {name: take[f]([event[field] for event in ordered]) for name, (f, field) in FUNCTION_OF.items()}  # type: ignore[operator]


def by(events: list[dict[str, Any]], *keys: str, minutes: int = 1) -> dict[tuple[Any, ...], dict[str, float]]:
    """Return all metrics of each window of this many minutes, by group columns and first minute."""
    windows = defaultdict(list)
    for event in events:
        minute = (event["ts"] - BASE) // MINUTE
        for first in range(minute - minutes + 1, minute + 1):
            windows[(*(event[key] for key in keys), first)].append(event)
    return {key: computed(events) for key, events in windows.items()}


def by_minute(rows: list[dict[str, Any]], *keys: str) -> dict[tuple[Any, ...], dict[str, float]]:
    """Return the metrics of answered rows, by group columns and first minute."""
    metrics = {}
    for row in rows:
        start = row["window_start"]
        moment = dt.datetime.fromisoformat(start) if isinstance(start, str) else start
        minute = int(moment.timestamp() * 1000 - BASE) // MINUTE
        metrics[(*(row[key] for key in keys), minute)] = {name: row[name] for name in FUNCTION_OF}
    return metrics


def test_metrics_with_similar_names_have_the_values_of_their_own_fields(make: Any) -> None:
    """The values are right in merged, composed and rolled up windows, in results and in live changes."""
    names = {"apiVersion": "tidemill.dev/v1alpha1", "kind": "AnalyticsPipeline", "metadata": {"name": "x"}}
    assert not check_document({**names, "spec": adversarial()})[1]
    named, events = make("adversarial", adversarial()), [event(number) for number in range(48)]
    named.commit(events[:20])
    named.commit(events[20:])
    groups = ("start", "n")
    for name in WINDOWS:
        minutes = 2 if name == "hopping" else 1
        wanted = by(events, *groups, minutes=minutes)
        assert by_minute(named.ask(name, "limit=1000"), *groups) == wanted, name
        assert by_minute(named.read(name), *groups) == wanted, name
        assert by_minute(named.changed(name, 1), *groups).items() <= wanted.items(), name
        assert by_minute(named.changed(name, 0), *groups) == wanted, name
        some = {key: row for key, row in wanted.items() if row["a__in"] == 1.0 or key[0] == "a"}
        both = named.ask(name, "start=a&n__gte=0&limit=1000")
        assert by_minute(both, *groups) == {key: row for key, row in some.items() if key[0] == "a"}, name
    for name in ("tumbling", "hopping", "again"):
        minutes = 2 if name == "hopping" else 1
        assert by_minute(named.ask(name, "group_by="), *()) == by(events, minutes=minutes)
        (everything,) = named.ask(name, "granularity=all&group_by=")
        assert {metric: everything[metric] for metric in FUNCTION_OF} == computed(events)
        bucketed = {k: v for k, v in by(events, "start", minutes=2).items() if k[-1] % 2 == 0}
        assert by_minute(named.ask(name, "granularity=2m&group_by=start"), "start") == bucketed


def test_filters_order_and_fill_accept_every_name(make: Any) -> None:
    """A parameter `a__in` filters the column of that name, if it exists. `__eq` filters any column."""
    named, events = make("asked", adversarial()), [event(number) for number in range(48)]
    named.commit(events)
    wanted = by(events, "start", "n")
    for name in FUNCTION_OF:
        value = min(row[name] for row in wanted.values())
        rows = named.ask("tumbling", f"{name}__eq={value}&order={name},-start&limit=1000")
        assert by_minute(rows, "start", "n") == {key: row for key, row in wanted.items() if row[name] == value}, name
        ordered = [row[name] for row in named.ask("tumbling", f"order=-{name}&limit=1000")]
        assert ordered == sorted(ordered, reverse=True)
    edges = sorted({row["a__in"] for row in wanted.values()})
    exact = named.ask("tumbling", f"a__in={edges[1]}&limit=1000")
    assert by_minute(exact, "start", "n") == {key: row for key, row in wanted.items() if row["a__in"] == edges[1]}
    filled = named.ask("hopping", f"fill=zero&limit=1000&{'&'.join(sorted(EDGES))}")
    composed = {key: row for key, row in by(events, "start", "n", minutes=2).items() if 0 <= key[-1] < 4}
    assert {key: row for key, row in by_minute(filled, "start", "n").items() if key in composed} == composed


def keywords(admin: psycopg.Connection[Any]) -> list[str]:
    """Return every valid name that is a word of Postgres, Python, a struct, the API or Tidemill's SQL."""
    words = {word for (word,) in admin.execute("SELECT word FROM pg_get_keywords()")}
    words |= {*keyword.kwlist, *keyword.softkwlist, *dir(msgspec.Struct), *dir(object), *SYSTEM_COLUMNS, *PARAMETERS}
    words |= {"a", "z" * 41, "x1__", "oid", "self", "cls", "pg_class", "batch_1", "excluded", "value", "le", "quantile"}
    return sorted(word for word in words if word.islower() and word[0].isalpha() and word not in RESERVED_COLUMNS)


def pipeline_of_names(words: tuple[str, ...]) -> dict[str, Any]:
    """Return a spec with these words as names of fields, group columns, metrics and aggregations.

    They are also columns of expressions.
    """
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


def test_every_keyword_works_as_a_name(make: Any, admin: psycopg.Connection[Any]) -> None:
    """A valid spec can be created, counted and queried."""
    words = keywords(admin)
    assert len(words) > 450
    for number, some in enumerate(cut(words, 120)):
        spec = pipeline_of_names(some)
        document = {"apiVersion": "tidemill.dev/v1alpha1", "kind": "AnalyticsPipeline", "metadata": {"name": "x"}}
        assert check_document({**document, "spec": spec})[1] == []
        named = make(f"keywords-{number}", spec)
        assert named.outcome.rank == Rank.DONE, named.outcome
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


def test_tidemill_knows_all_system_columns_of_postgres(admin: psycopg.Connection[Any]) -> None:
    rows = admin.execute("SELECT attname FROM pg_attribute WHERE attrelid = 'pg_class'::regclass AND attnum < 0")
    assert {name for (name,) in rows} == set(SYSTEM_COLUMNS)


@pytest.mark.parametrize("column", SYSTEM_COLUMNS)
def test_a_system_column_is_refused_as_group_and_the_named_remedy_works(make: Any, column: str) -> None:
    """If validation does not refuse it, the operator does, and names the aggregation and the column."""
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
    (fault,) = check_document({**document, "spec": spec})[1]
    assert fault.path == "spec.aggregations[0].groupBy[0]"
    assert f"{{name: by_{column}, expression: {column}}}" in str(fault)
    refused = make("system", spec).outcome
    assert (refused.rank, refused.reason) == (Rank.FAILED, Reason.NOT_SUPPORTED)
    assert "spec.aggregations[rows]" in refused.message
    assert f'"{column}"' in refused.message

    spec["transform"] = {"derive": [{"name": f"by_{column}", "expression": column}]}
    spec["aggregations"][0]["groupBy"] = [f"by_{column}"]
    assert check_document({**document, "spec": spec})[1] == []
    named = make("system", spec)
    named.commit([{"ts": BASE, column: 7}])
    (row,) = named.ask("rows")
    assert (row[f"by_{column}"], row["events"]) == (7, 1)
