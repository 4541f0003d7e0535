"""Tests of lookups on a real Kafka and Postgres: counts for each looked-up group are exact.

Meanwhile the reference data change, Postgres hangs, or a processor is killed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg
import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic

from bench import Bench, MakeBench, delete_topics
from pipelines.pipeline_schema import connect_admin
from running.hanging import BlackHole
from tidemill_contract.functions.partials import build_layout, field_types
from tidemill_contract.resource.spec import PipelineSpec
from tidemill_contract.runtime import AggregationRef, PipelineConfig
from tidemill_operator.observer.backlog import StoredProgress, read_progress

pytestmark = [pytest.mark.integration, pytest.mark.slow]

BASE = 1_700_000_000_000 // 60_000 * 60_000
TOPIC = "tests.lookups.customers"
Group = tuple[str | None, ...]
Counts = tuple[int, ...]
GROUPS = ["segment", "category", "plan_name"]
LOOKUPS: list[dict[str, Any]] = [
    {
        "name": "customers",
        "on": "customer",
        "from": {"topic": TOPIC},
        "fields": [{"name": "segment", "type": "string"}, {"name": "plan", "type": "string", "path": "contract.plan"}],
    },
    {
        "name": "products",
        "on": "sku",
        "from": {"table": "lookups_shop.products", "key": "sku", "secretRef": {"name": "shop"}, "refresh": "1s"},
        "fields": [{"name": "category", "type": "string"}, {"name": "listed", "type": "timestamp"}],
    },
    {
        "name": "plans",
        "on": "plan",
        "from": {"configMap": "plans", "file": "plans.csv", "key": "code"},
        "fields": [{"name": "plan_name", "type": "string"}, {"name": "price", "type": "decimal", "scale": 2}],
    },
]


def config(name: str, lookups: list[dict[str, Any]], groups: list[str]) -> PipelineConfig:
    """Return a pipeline whose aggregation groups events by fields of its lookups."""
    metrics = [{"name": "n", "function": "count"}]
    looked_up = {field["name"] for lookup in lookups for field in lookup["fields"]}
    if "price" in looked_up:
        metrics += [
            {"name": "paid", "function": "sum", "field": "price"},
            {"name": "old", "function": "count", "where": "listed < '2025-01-01T00:00:00Z'"},
        ]
    spec = PipelineSpec.model_validate(
        {
            "source": {
                "topic": {"partitions": 2},
                "fields": [
                    {"name": "ts", "type": "timestamp"},
                    {"name": "customer", "type": "string"},
                    {"name": "sku", "type": "integer"},
                ],
                "eventTime": {"field": "ts", "idleTimeout": "10m"},
            },
            "lookups": lookups,
            "aggregations": [
                {"name": "by", "groupBy": groups, "window": {"type": "tumbling", "size": "1m"}, "metrics": metrics}
            ],
            "processor": {"flushInterval": "100ms"},
        }
    )
    refs = (AggregationRef(name="by"),)
    return PipelineConfig(namespace="tests", name=name, generation=1, spec=spec, aggregations=refs)


@dataclass
class World:
    """The reference data in Kafka, Postgres and a file, and the counts that the test expects.

    Attributes:
        customers: the rows of the topic, by key.
        products: the category and the time of listing, by SKU.
        plans: the name and the price, by code.
        expected: the expected count, paid cents and number of old products, by group.
        sent: the number of events sent.
    """

    bench: Bench
    folder: Path
    connection: psycopg.Connection[Any]
    customers: dict[str, dict[str, Any]] = field(default_factory=dict)
    products: dict[int, tuple[str | None, str]] = field(default_factory=dict)
    plans: dict[str, tuple[str, str]] = field(default_factory=dict)
    expected: dict[Group, Counts] = field(default_factory=dict)
    sent: int = 0

    def write_customers(self, changes: Mapping[str, dict[str, Any] | None]) -> None:
        """Write customers to the topic. The value None deletes a customer."""
        producer = Producer({"bootstrap.servers": self.bench.servers.kafka, "partitioner": "murmur2_random"})
        for key, row in changes.items():
            producer.produce(TOPIC, None if row is None else json.dumps(row).encode(), key=key)
            self.customers.pop(key, None)
            if row is not None:
                self.customers[key] = row
        assert producer.flush(30) == 0

    def write_product(self, sku: int, category: str | None, listed: str) -> None:
        """Insert or update a product in Postgres."""
        self.connection.execute(
            "INSERT INTO lookups_shop.products VALUES (%s, %s, %s) ON CONFLICT (sku) DO UPDATE"
            " SET category = excluded.category, listed = excluded.listed",
            (sku, category, listed),
        )
        self.products[sku] = category, listed

    def write_plans(self, plans: Mapping[str, tuple[str, str]]) -> None:
        """Replace the file of plans atomically, as Kubernetes does with a mounted ConfigMap."""
        self.plans = dict(plans)
        lines = ["code,plan_name,price", *(f"{code},{name},{price}" for code, (name, price) in plans.items())]
        (self.folder / "new").write_text("\n".join(lines) + "\n")
        (self.folder / "new").rename(self.folder / "plans.csv")

    def send(self, number: int) -> None:
        """Send events, and add the counts that the current reference data give to `expected`."""
        events = [(f"c{i % 7}", None if i % 11 == 0 else i % 5) for i in range(number)]
        self.bench.produce(
            [json.dumps({"ts": BASE + i, "customer": c, "sku": s}).encode() for i, (c, s) in enumerate(events)]
        )
        self.sent += number
        for customer, sku in events:
            row = self.customers.get(customer, {})
            category, listed = (None, "9999") if sku is None else self.products.get(sku, (None, "9999"))
            name, price = self.plans.get((row.get("contract") or {}).get("plan", ""), (None, "0"))
            group: Group = row.get("segment"), category, name
            n, paid, old = self.expected.get(group, (0, 0, 0))
            self.expected[group] = n + 1, paid + int(Decimal(price) * 100), old + (listed < "2025")

    def await_exact(self) -> None:
        """Wait until all events are counted, and compare the counts with the expected counts."""
        self.bench.await_consumed(self.sent)
        assert self.counted() == self.expected

    def counted(self) -> dict[Group, Counts]:
        """Return the counts in Postgres by group."""
        layout = build_layout(self.bench.config.spec.aggregations[0], field_types(self.bench.config.spec, {}))
        columns = [f'coalesce("{partial.column}", 0)' for partial in layout.partials]
        rows = self.bench.query(f"SELECT {', '.join([*GROUPS, *columns])} FROM {{s}}.by_v1")
        return {tuple(row[:3]): tuple(map(int, row[3:])) for row in rows}


@contextmanager
def products(servers: Any) -> Iterator[psycopg.Connection[Any]]:
    """Create an empty table of products in the session's Postgres, and drop the table at the end."""
    with connect_admin(servers) as connection:
        connection.autocommit = True
        connection.execute("DROP SCHEMA IF EXISTS lookups_shop CASCADE")
        connection.execute("CREATE SCHEMA lookups_shop")
        connection.execute(
            "CREATE TABLE lookups_shop.products (sku bigint PRIMARY KEY, category text, listed timestamptz NOT NULL)"
        )
        yield connection
        connection.execute("DROP SCHEMA lookups_shop CASCADE")


def has_rows(bench: Bench, **rows: int) -> bool:
    """Return whether the processor holds these numbers of rows, by lookup."""
    metrics = bench.metrics()
    return all(f'tidemill_lookup_rows{{lookup="{name}"}} {number}.0' in metrics for name, number in rows.items())


def test_groups_are_exact_while_lookups_change_and_a_processor_is_killed(make_bench: MakeBench, tmp_path: Path) -> None:
    """An event is joined to the rows that are current when the event is counted.

    No event is counted before each lookup has been read once.
    """
    dirs = {name: tmp_path / name for name in ("products", "plans")}
    for path in dirs.values():
        path.mkdir()
    lookup_dirs = json.dumps({name: str(path) for name, path in dirs.items()})
    bench = make_bench(config("lookups", LOOKUPS, GROUPS), TIDEMILL_LOOKUP_DIRS=lookup_dirs)
    kafka = AdminClient({"bootstrap.servers": bench.servers.kafka})
    delete_topics(kafka, [TOPIC])
    (creation,) = kafka.create_topics([NewTopic(TOPIC, 3, 1, config={"cleanup.policy": "compact"})]).values()
    creation.result(30)
    with products(bench.servers) as connection:
        world = World(bench, dirs["plans"], connection)
        world.write_customers({f"c{i}": {"segment": "ab"[i % 2], "contract": {"plan": f"p{i % 3}"}} for i in range(5)})
        for sku in range(4):
            world.write_product(sku, f"k{sku % 2}" if sku else None, f"202{sku + 3}-06-01T00:00:00Z")
        plans = {"p0": ("free", "0"), "p1": ("pro", "9.99")}
        world.plans = plans
        world.send(1_000)
        bench.start()
        health = bench.eventually(
            lambda: answer if len((answer := bench.health()).get("dependencies", {})) > 5 else None,
            what="health lists all dependencies",
        )
        assert health["status"] == "unhealthy"
        products_row = health["dependencies"]["lookup products"]
        assert products_row["required"]
        assert "the Secret shop" in products_row["detail"]
        assert "no event is counted before the lookup is read" in health["dependencies"]["lookup plans"]["detail"]
        at = bench.servers.postgres
        (dirs["products"] / "uri").write_text(f"postgresql://{at.user}:{at.password}@{at.host}:{at.port}/{at.database}")
        bench.eventually(
            lambda: bench.health()["dependencies"]["lookup products"]["status"] == "up",
            what="the lookup of products is read",
        )
        assert bench.consumed() == 0
        world.write_plans(plans)
        world.await_exact()
        bench.eventually(lambda: bench.health()["status"] == "healthy", what="the processor is healthy")

        world.write_customers(
            {"c0": {"segment": "z", "contract": None}, "c1": None, "c6": {"segment": "b"}, "c5": {"segment": 5}}
        )
        world.customers.pop("c5")
        world.write_product(1, "new", "2020-01-01T00:00:00Z")
        world.write_product(4, "more", "2020-01-01T00:00:00Z")
        world.write_plans({"p2": ("max", "19.95"), "p0": ("basic", "1.50"), "p9": ("none", "0")})
        bench.eventually(
            lambda: (
                has_rows(bench, products=5, plans=3)
                and bench.health()["dependencies"]["lookup customers"]["status"] == "down"
            ),
            what="the changed lookups are read",
        )
        assert "segment: expected string, got number 5" in bench.health()["dependencies"]["lookup customers"]["detail"]
        world.write_customers({"c5": {"segment": "a"}})
        bench.eventually(lambda: bench.health()["status"] == "healthy", what="the mistyped record is replaced")
        world.send(1_000)
        world.await_exact()

        world.send(40_000)
        process = bench.processes[-1]
        bench.eventually(lambda: bench.consumed() > 2_000, what="2,000 events are counted", pause_seconds=0.01)
        process.kill()
        process.wait()
        bench.start()
        world.await_exact()
        assert bench.query("SELECT count(*) FROM {s}._dead_letters") == [(0,)]


def test_the_operator_learns_why_a_lookup_was_never_read(make_bench: MakeBench, tmp_path: Path) -> None:
    """The reasons name the user's table, topic or file, with the error of Postgres or Kafka.

    No event is counted until all lookups have been read.
    """
    sources: dict[str, dict[str, Any]] = {
        "by_table": {"table": "lookups_shop.absent", "key": "sku", "secretRef": {"name": "shop"}},
        "by_query": {
            "query": "SELECT sku, nothing AS category FROM lookups_shop.products",
            "key": "sku",
            "secretRef": {"name": "shop"},
        },
        "by_topic": {"topic": "default.absent"},
        "by_file": {"configMap": "plans", "file": "plans.csv", "key": "sku"},
    }
    lookups = [
        {"name": name, "on": "sku", "from": source, "fields": [{"name": name, "type": "string", "path": "category"}]}
        for name, source in sources.items()
    ]
    folders = json.dumps({name: str(tmp_path) for name in ("by_table", "by_query", "by_file")})
    bench = make_bench(config("unread", lookups, ["by_table", "by_topic"]), TIDEMILL_LOOKUP_DIRS=folders)
    at = bench.servers.postgres
    login = {"host": "127.0.0.1", "port": at.port, "database": at.database, "user": at.user, "password": at.password}
    for name, value in login.items():
        (tmp_path / name).write_text(f"{value}\n")

    def unread() -> dict[str, str]:
        standing = read_progress(at, [bench.config.schema_name])[bench.config.schema_name]
        return dict(standing.unread_lookups) if isinstance(standing, StoredProgress) else {}

    with products(bench.servers) as connection:
        bench.produce([json.dumps({"ts": BASE, "sku": 1}).encode()] * 10)
        bench.start()
        bench.eventually(lambda: len(unread()) == len(sources), what=lambda: f"all lookups are unread: {unread()}")
        reasons = unread()
        where = f"Postgres 127.0.0.1:{at.port}/{at.database}"
        assert reasons["by_table"].startswith(
            f'{where}, table lookups_shop.absent: relation "lookups_shop.absent" does not exist; create it, or correct'
            " from.table"
        )
        assert reasons["by_query"].startswith(
            f"{where}, query SELECT sku, nothing AS category FROM lookups_shop.products: column"
        )
        assert "row_to_json" not in f"{reasons}"
        assert "there is no topic default.absent; create it, or correct from.topic" in reasons["by_topic"]
        assert "file plans.csv of the ConfigMap plans" in reasons["by_file"]
        assert bench.consumed() == 0
        connection.execute("CREATE TABLE lookups_shop.absent (sku bigint, category text)")
        connection.execute("ALTER TABLE lookups_shop.products ADD nothing text")
        (tmp_path / "plans.csv").write_text("sku,category\n1,a\n")
        kafka = AdminClient({"bootstrap.servers": bench.servers.kafka})
        kafka.create_topics([NewTopic("default.absent", 2, 1)])["default.absent"].result(20)
        bench.await_consumed(10)
        bench.eventually(lambda: unread() == {}, what=lambda: f"all lookups are read: {unread()}")

        # The topic is deleted and created again with fewer partitions.
        delete_topics(kafka, ["default.absent"])
        kafka.create_topics([NewTopic("default.absent", 1, 1)])["default.absent"].result(20)
        producer = Producer({"bootstrap.servers": bench.servers.kafka})
        producer.produce("default.absent", b'{"category": "anew"}', key="1")
        assert producer.flush(30) == 0

        def joined() -> list[Any]:
            bench.produce([json.dumps({"ts": BASE, "sku": 1}).encode()])
            return bench.query("SELECT 1 FROM {s}.by_v1 WHERE by_topic = 'anew'")

        bench.eventually(joined, what="a row of the new topic is joined")


def test_the_last_rows_are_used_while_postgres_hangs(make_bench: MakeBench, tmp_path: Path) -> None:
    """Health names the outdated lookup and its server. When Postgres answers again, the lookup is refreshed."""
    (lookup_of_products,) = (lookup for lookup in LOOKUPS if lookup["name"] == "products")
    pipeline = config("stale", [lookup_of_products], ["category"])
    bench = make_bench(pipeline, TIDEMILL_LOOKUP_DIRS=json.dumps({"products": str(tmp_path)}))
    at = bench.servers.postgres

    def counts() -> dict[str | None, int]:
        return dict(bench.query("SELECT category, sum(_count)::int FROM {s}.by_v1 GROUP BY 1"))

    with products(bench.servers) as connection, BlackHole(at.port) as hole:
        login = {"host": "127.0.0.1", "port": hole.port, "database": at.database, "user": at.user}
        for name, value in {**login, "password": at.password}.items():
            (tmp_path / name).write_text(f"{value}\n")
        connection.execute("INSERT INTO lookups_shop.products VALUES (1, 'a', now())")
        events = [json.dumps({"ts": BASE, "sku": 1}).encode()] * 100
        bench.produce(events)
        bench.start()
        bench.await_consumed(100)
        with hole.open():
            connection.execute("UPDATE lookups_shop.products SET category = 'b'")

            def outdated() -> str:
                text = str(bench.health()["dependencies"]["lookup products"].get("detail", ""))
                return text if "outdated: events get rows that are" in text else ""

            detail = bench.eventually(outdated, what="health reports an outdated lookup")
            assert f"127.0.0.1:{hole.port}/{at.database}, table lookups_shop.products" in detail
            assert at.password not in detail
            assert bench.health()["status"] == "degraded"
            bench.produce(events)
            bench.await_consumed(200)
            assert counts() == {"a": 200}
        bench.eventually(lambda: bench.health()["status"] == "healthy", what="the lookup is refreshed")
        bench.produce(events)
        bench.await_consumed(300)
        assert counts() == {"a": 200, "b": 100}
