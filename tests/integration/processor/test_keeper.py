"""Tests of the keeper with damaged windows and refused records, on a real Kafka and Postgres.

The keeper skips only windows that it cannot read or publish. Health, metrics and conditions name the skipped windows.
"""

from __future__ import annotations

import json
import urllib.request
from dataclasses import replace
from typing import Any

import psycopg
import pytest
from confluent_kafka import Consumer, Producer
from confluent_kafka.admin import AdminClient, NewTopic

from bench import Bench, MakeBench
from tidemill_contract.resource.spec import PipelineSpec
from tidemill_contract.runtime import AggregationRef, PipelineConfig
from tidemill_contract.times import rfc3339_ms
from tidemill_operator.actuators.postgres.schema import PostgresSchemas
from tidemill_operator.errors import Reason
from tidemill_operator.plan.live import Owner
from tidemill_operator.plan.postgres.failures import failure_errors
from tidemill_processor.publish.producer import RecordSender
from tidemill_processor.source.clusters import PRODUCER_TUNING
from waiting import eventually

pytestmark = pytest.mark.integration

MINUTE = 60_000
BASE = 1_700_000_000_000 // MINUTE * MINUTE
OWNER = Owner("tests", "keeper", "uid-1", "local")
WINDOWS = 6
LONG = 700_000
METRICS = {
    "good": [{"name": "events", "function": "count"}, {"name": "total", "function": "sum", "field": "v"}],
    "bad": [
        {"name": "events", "function": "count"},
        {"name": "latest", "function": "max", "field": "seen"},
        {"name": "people", "function": "distinct", "field": "user"},
    ],
    "broken": [{"name": "greatest", "function": "max", "field": "v"}],
    "long": [{"name": f"{f}_text", "function": f, "field": "text"} for f in ("first", "last", "min", "max")],
}


def connect_admin(servers: Any) -> psycopg.Connection[Any]:
    return psycopg.connect(servers.postgres.url, autocommit=True, options="-c TimeZone=UTC")


def config() -> PipelineConfig:
    hopping = {"type": "hopping", "size": "2m", "hop": "1m"}
    spec = PipelineSpec.model_validate(
        {
            "source": {
                "topic": {"partitions": 1},
                "fields": [
                    {"name": "ts", "type": "timestamp", "required": True},
                    {"name": "k", "type": "string"},
                    {"name": "user", "type": "string"},
                    {"name": "seen", "type": "timestamp"},
                    {"name": "text", "type": "string"},
                    {"name": "v", "type": "number"},
                ],
                "eventTime": {"field": "ts", "idleTimeout": "10m", "maxDisorder": "0s"},
            },
            "aggregations": [
                {
                    "name": name,
                    "groupBy": ["k"],
                    "window": hopping if name == "bad" else {"type": "tumbling", "size": "1m"},
                    "metrics": metrics,
                }
                for name, metrics in METRICS.items()
            ],
            "anomalies": [
                {"name": "watch_good", "aggregation": "good", "metric": "total"},
                {"name": "watch_bad", "aggregation": "bad", "metric": "events"},
            ],
            "processor": {"flushInterval": "100ms"},
        }
    )
    refs = tuple(AggregationRef(name=name) for name in METRICS)
    return PipelineConfig(namespace="tests", name="keeper", generation=1, spec=spec, aggregations=refs)


def event(minute: int, k: str) -> bytes:
    at = BASE + minute * MINUTE + 1_000
    text = "x" * LONG if (minute, k) == (1, "a") else "short"
    members = {"ts": at, "k": k, "user": f"{k}{minute}", "seen": at, "text": text, "v": float(minute)}
    return json.dumps(members).encode()


def reached(bench: Bench, column: str) -> dict[str, int | None]:
    """Return the progress of each aggregation in a duty, as a number of windows."""
    rows = bench.query(f"SELECT name, {column} FROM {{s}}._aggregations")
    return {name: None if until is None else (until - BASE) // MINUTE for name, until in rows}


def metric(bench: Bench, name: str) -> float:
    """Return a value of the latest processor's /metrics."""
    with urllib.request.urlopen(f"http://127.0.0.1:{bench.ports[-1]}/metrics", timeout=5) as answer:
        lines = answer.read().decode().splitlines()
    return float(next(line.split()[-1] for line in lines if line.startswith(name)))


def reported(bench: Bench) -> dict[Reason, str]:
    """Return the errors that the operator reads in the tables and reports in a condition, by reason."""
    observed = PostgresSchemas(bench.servers.postgres).observe(bench.config.schema_name)
    assert observed is not None
    return {error.reason: str(error) for error in failure_errors(replace(observed, owner=OWNER), OWNER)}


def publish_windows(bench: Bench) -> None:
    """Run a processor until it has closed and published all windows but the last, and stop it."""
    first = bench.start()
    bench.produce([event(minute, k) for minute in range(WINDOWS) for k in "ab"], partition=0)
    bench.eventually(
        lambda: set(reached(bench, "published_until").values()) == {WINDOWS - 1},
        seconds=60,
        what="all windows but the last are published",
    )
    first.terminate()
    first.wait()


def damage(bench: Bench) -> None:
    """Damage stored windows, and reset the progress of publishing and scanning.

    One row gets a time that Python cannot represent, one row gets an invalid sketch, and one table loses a column.
    """
    pane = "WHERE window_start = to_timestamp(%s) AND k = %s"
    at = (BASE // 1_000 + 120, "a"), (BASE // 1_000 + 240, "b")
    with connect_admin(bench.servers) as admin:
        admin.execute(f"UPDATE {bench.schema}.bad_v1 SET _max_seen = 'infinity' {pane}", at[0])
        admin.execute(f"UPDATE {bench.schema}.bad_v1 SET _uniques_user = 'no sketch'::bytea {pane}", at[1])
        admin.execute(f"ALTER TABLE {bench.schema}.broken_v1 DROP COLUMN _max_v")
        admin.execute(f"UPDATE {bench.schema}._aggregations SET published_until = NULL, scanned_until = NULL")


def check_long_record(bench: Bench) -> None:
    """Assert that a record that is too large is published without one of its four texts of 700 kB."""
    texts = {
        (row["group"]["k"], row["window_start"]): row["metrics"]
        for row in bench.records("results")
        if row["aggregation"] == "long"
    }
    assert len(texts) == 2 * (WINDOWS - 1)
    (long,) = [values for values in texts.values() if None in values.values()]
    assert sorted(len(value or "") for value in long.values()) == [0, LONG, LONG, LONG]


def check_published(bench: Bench) -> None:
    """Assert that all readable aggregations are published, with null for damaged metrics in each window of the pane."""
    bench.eventually(
        lambda: reached(bench, "published_until") == {"good": 5, "bad": 5, "long": 5, "broken": None},
        seconds=60, what="the readable aggregations are published",
    )  # fmt: skip
    bench.eventually(
        lambda: [reached(bench, "scanned_until")[name] for name in ("good", "bad")] == [5, 5],
        seconds=60, what="the readable aggregations are scanned",
    )  # fmt: skip
    rows = {
        (row["group"]["k"], row["window_start"]): {name for name, value in row["metrics"].items() if value is None}
        for row in bench.records("results")
        if row["aggregation"] == "bad"
    }
    wrong = {key: names for key, names in rows.items() if names}
    assert wrong == {
        ("a", rfc3339_ms(BASE + 1 * MINUTE)): {"latest"}, ("a", rfc3339_ms(BASE + 2 * MINUTE)): {"latest"},
        ("b", rfc3339_ms(BASE + 3 * MINUTE)): {"people"},
    }  # fmt: skip
    assert len(rows) == 2 * WINDOWS - 2


def check_skipped(bench: Bench) -> None:
    """Assert that `_skipped` names each skipped window, group and metric, for publishing and for scanning."""
    skipped = bench.query(
        "SELECT DISTINCT duty, group_key ->> 'k', (extract(epoch FROM window_start) * 1000)::bigint, metrics"
        " FROM {s}._skipped WHERE aggregation = 'bad'"
    )
    assert {(k, (at - BASE) // MINUTE, *names) for duty, k, at, names in skipped if duty == "publish"} == {
        ("a", 1, "latest"), ("a", 2, "latest"), ("b", 3, "people"),
    }  # fmt: skip
    assert {duty for duty, *_ in skipped} == {"publish", "scan"}


def check_reported(bench: Bench) -> None:
    """Assert that health, metrics and conditions name the held-up aggregation and the skipped windows."""
    health = bench.health()
    assert (health["status"], health["keeper"], health["scanning"]) == ("degraded", "ok", "ok")
    assert health["publishing"].startswith("broken: ")
    assert "_max_v" in health["publishing"]
    assert metric(bench, 'tidemill_held_up{duty="publish"}') == 1
    assert metric(bench, 'tidemill_windows_skipped_total{duty="publish"}') == 4, (
        "three damaged windows and the long window"
    )
    errors = reported(bench)
    assert list(errors) == [Reason.HELD_UP, Reason.WINDOWS_SKIPPED]
    assert "aggregation broken: closed windows cannot be published: " in errors[Reason.HELD_UP]
    assert (
        f'aggregation bad: window {rfc3339_ms(BASE + MINUTE)}, group {{"k": "a"}}, with null for latest'
        in errors[Reason.WINDOWS_SKIPPED]
    )


def check_repaired(bench: Bench) -> None:
    """Restore the missing column, and assert that the aggregation is published and no longer held up."""
    with connect_admin(bench.servers) as admin:
        admin.execute(f"ALTER TABLE {bench.schema}.broken_v1 ADD COLUMN _max_v double precision")
    bench.eventually(
        lambda: reached(bench, "published_until")["broken"] == 5,
        seconds=60,
        what="the repaired aggregation is published",
    )
    bench.eventually(lambda: bench.health()["status"] == "healthy", what="the processor is healthy")
    assert bench.query("SELECT * FROM {s}._held_up") == []
    assert metric(bench, 'tidemill_held_up{duty="publish"}') == 0


def test_only_unreadable_metrics_and_tables_are_skipped(make_bench: MakeBench) -> None:
    """A window with an unreadable metric is published with null. An unreadable table is held up until its repair."""
    bench = make_bench(config())
    publish_windows(bench)
    check_long_record(bench)
    damage(bench)
    bench.start()
    check_published(bench)
    check_skipped(bench)
    check_reported(bench)
    check_repaired(bench)


def test_only_the_refused_record_of_a_batch_is_not_published(servers: Any) -> None:
    """The broker refuses the whole batch of a record that is too large. The other records are sent again without it."""
    kafka, topic = AdminClient({"bootstrap.servers": servers.kafka}), "tests.keeper.small"
    wanted = NewTopic(topic, 1, 1, config={"max.message.bytes": "3000"})
    for future in kafka.create_topics([wanted]).values():
        future.result(30)
    eventually(lambda: topic in kafka.list_topics(timeout=10).topics, what="the topic exists")
    # Without compression, the broker sees the size of each record.
    settings = {**PRODUCER_TUNING, "compression.type": "none", "bootstrap.servers": servers.kafka}
    sender = RecordSender(lambda: Producer(settings))
    for number in range(40):
        size = 5_000 if number == 17 else 40
        sender.send(topic, str(number).encode(), b"x" * size, {"id": str(number)})
    (refused,) = sender.wait_for_acks()
    assert (refused.key, refused.headers) == (b"17", {"id": "17"})
    assert "too large" in refused.reason.lower()
    keys = set()
    consumer = Consumer(
        {"bootstrap.servers": servers.kafka, "group.id": "keeper-small", "auto.offset.reset": "earliest"}
    )
    consumer.subscribe([topic])

    def all_read() -> bool:
        keys.update(message.key() for message in consumer.consume(100, 0.5) if message.error() is None)
        return len(keys) == 39

    eventually(all_read, what="the other records are in the topic")
    consumer.close()
    assert keys == {str(number).encode() for number in range(40) if number != 17}
    sender.send(topic, b"after", b"x", {"id": "after"})
    assert sender.wait_for_acks() == []
