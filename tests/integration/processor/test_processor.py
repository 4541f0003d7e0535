"""Tests of processors as processes on a real Kafka, Postgres and Redis.

Hostile events, kills, frozen processes, resets and competing replicas neither stop processors nor change counts.
"""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from confluent_kafka import ConsumerGroupTopicPartitions, TopicPartition
from confluent_kafka.admin import AdminClient

from bench import Bench, MakeBench, Output
from kafka_admin import KafkaAdmin
from tidemill_contract.events.decoder import QUARANTINE_PREFIX
from tidemill_contract.resource.spec import PipelineSpec
from tidemill_contract.runtime import AggregationRef, PipelineConfig

pytestmark = pytest.mark.integration

BASE = 1_700_000_000_000 // 60_000 * 60_000


def config(name: str, **source: Any) -> PipelineConfig:
    spec = PipelineSpec.model_validate(
        {
            "source": {
                "topic": {"partitions": 3},
                "fields": [
                    {"name": "ts", "type": "timestamp", "required": True},
                    {"name": "k", "type": "string"},
                    {"name": "v", "type": "number"},
                    {"name": "i", "type": "integer"},
                ],
                # A long idle timeout: on a slow machine, no partition becomes idle and no event becomes late.
                "eventTime": {"field": "ts", "idleTimeout": "10m", "maxDisorder": "1s"},
                **source,
            },
            "transform": {"derive": [{"name": "ratio", "expression": "v / i"}]},
            "aggregations": [
                {
                    "name": "by_k",
                    "groupBy": ["k"],
                    "window": {"type": "tumbling", "size": "1m"},
                    "metrics": [
                        {"name": "n", "function": "count"},
                        {"name": "total", "function": "sum", "field": "i"},
                        {"name": "top", "function": "max", "field": "v"},
                        {"name": "ratios", "function": "count", "field": "ratio"},
                    ],
                },
                {
                    "name": "hops",
                    "window": {"type": "hopping", "size": "3m", "hop": "1m"},
                    "metrics": [{"name": "n", "function": "count"}, {"name": "mean", "function": "avg", "field": "v"}],
                },
            ],
            "anomalies": [
                {
                    "name": "spike",
                    "aggregation": "by_k",
                    "metric": "top",
                    "detector": {"type": "zscore", "threshold": 6, "warmup": 5},
                }
            ],
            "processor": {"flushInterval": "100ms"},
        }
    )
    return PipelineConfig(
        namespace="tests",
        name=name,
        generation=1,
        spec=spec,
        aggregations=tuple(AggregationRef(name=a.name) for a in spec.aggregations),
    )


def event(t: int, **members: Any) -> bytes:
    return json.dumps({"ts": BASE + t, **members}).encode()


def counts(bench: Bench) -> dict[str, int]:
    return {k: int(n) for k, n in bench.query("SELECT coalesce(k, '<null>'), sum(_count) FROM {s}.by_k_v1 GROUP BY 1")}


def read_all(bench: Bench, kind: Output, number: int, seconds: float = 90.0) -> list[Any]:
    """Read an output topic from its start until there are this many records, and return the records."""
    records: list[Any] = []
    deadline = time.monotonic() + seconds
    with bench.reading(kind) as consumer:
        while len(records) < number and time.monotonic() < deadline:
            records += [m for m in consumer.consume(number, 0.5) if m.error() is None]
    assert len(records) >= number, f"{len(records)} of {number} {kind}"
    return records


HOSTILE = [
    ("null key", event(1, k=None), None),
    ("NUL", event(1, k="a\0"), "bad_string"),
    ("lone surrogate", b'{"ts": 1700000000000, "k": "\\ud800"}', "not_json"),
    ("3 kB key", event(1, k="x" * 3000), "key_too_long"),
    ("64-bit overflow", event(1, i=2**63), "out_of_range"),
    ("greatest integers, whose sum is beyond 64 bits", event(1, k="sum", i=2**63 - 1), None),
    ("greatest integers, once more", event(1, k="sum", i=2**63 - 1), None),
    ("year 10000", b'{"ts": "10000-01-01T00:00:00Z"}', "out_of_range"),
    ("NaN by division", event(1, k="nan", v=0.0, i=0), None),
    ("infinity by division", event(1, k="nan", v=1.0, i=0), None),
    ("not JSON", b"\xde\xad\xbe\xef", "not_json"),
    ("empty", b"", "not_json"),
    ("wrong type", event(1, v="high"), "mistyped"),
    ("no event time", b'{"k": "a"}', "missing_field"),
    (
        "a fraction that rounding would take into the next window",
        b'{"ts": "2023-11-14T22:12:59.9999999Z", "k": "cut"}',
        None,
    ),
    ("an integer as data frames write it", event(1, k="frame", i=200.0), None),
    ("seconds", json.dumps({"ts": BASE // 1000, "k": "a"}).encode(), "out_of_range"),
    ("no value", None, "not_json"),
    ("oversized", event(1, k="a", pad="x" * 1_100_000), "too_large"),
    ("far future", event(10**12, k="a"), "too_far_in_the_future"),
    ("a newline and a quote", event(1, k='a\n"b",\\'), None),
    ("text that CSV takes for null", event(1, k="\\N"), None),
    ("an empty key is no null", event(1, k=""), None),
]


def test_hostile_events_are_counted_or_become_dead_letters(make_bench: MakeBench) -> None:
    bench = make_bench(config("hostile"))
    bench.start()
    bench.produce([value for _, value, _ in HOSTILE], partition=0)
    bench.produce(
        [QUARANTINE_PREFIX + b'{"ts": 1, "k"'], partition=1, headers=[("reason", b"not_json"), ("field", b"k")]
    )
    bench.produce([event(2, k="after")] * 3)
    bench.await_consumed(len(HOSTILE) + 4)
    verdicts = [(reason, verdict) for reason, _, verdict in HOSTILE]
    letters = bench.query('SELECT "offset", reason FROM {s}._dead_letters WHERE partition = 0 ORDER BY 1')
    assert [(i, verdict) for i, (_, verdict) in enumerate(verdicts) if verdict] == letters
    refused = bench.query(
        "SELECT reason, field, convert_from(value, 'utf8') FROM {s}._dead_letters WHERE partition = 1"
    )
    assert refused == [("not_json", "k", '{"ts": 1, "k"')]
    assert counts(bench) == {
        "<null>": 1,
        "cut": 1,
        "frame": 1,
        "sum": 2,
        "nan": 2,
        'a\n"b",\\': 1,
        "\\N": 1,
        "": 1,
        "after": 3,
    }
    cut = bench.query("SELECT window_start::text FROM {s}.by_k_v1 WHERE k = 'cut'")
    assert cut == [("2023-11-14 22:12:00+00",)]
    assert bench.query("SELECT _sum_i FROM {s}.by_k_v1 WHERE k = 'sum'") == [(2 * (2**63 - 1),)]
    assert bench.query("SELECT _n_ratio FROM {s}.by_k_v1 WHERE k = 'nan'") == [(0,)]
    published = read_all(bench, "dead-letters", len(letters) + 1)
    headers = [dict(m.headers()) for m in published]
    assert {b"not_json", b"bad_string", b"too_large"} <= {h["reason"] for h in headers}
    assert {str(offset).encode() for offset, _ in letters} <= {h["offset"] for h in headers}
    assert bench.health()["status"] == "healthy"


def test_hostile_field_names_and_headers_become_dead_letters(make_bench: MakeBench) -> None:
    """Field names are escaped and cut for Postgres. Unknown reasons in headers are replaced with a known reason."""
    plain = config("names")
    source = plain.spec.source.model_copy(update={"strict": True})
    bench = make_bench(plain.model_copy(update={"spec": plain.spec.model_copy(update={"source": source})}))
    bench.start()
    bench.produce([event(1, **{"x\0y": 1}), event(1, **{"long" * 1000: 1}), event(2, k="after")], partition=0)
    bench.produce(
        [QUARANTINE_PREFIX + b"{"], partition=1, headers=[("reason", b"odd\0\xff" * 100), ("field", b"\0" * 500)]
    )
    bench.await_consumed(4)
    assert counts(bench) == {"after": 1}
    letters = bench.query('SELECT reason, field FROM {s}._dead_letters ORDER BY partition, "offset"')
    assert letters[0] == ("unknown_field", "x\\0y")
    assert letters[1] == ("unknown_field", ("long" * 1000)[:200])
    assert letters[2] == ("not_json", None)
    read_all(bench, "dead-letters", 3)


def test_events_that_postgres_refuses_become_dead_letters(make_bench: MakeBench) -> None:
    """Three incompressible keys of 1 KiB exceed the size of an index row, which only Postgres checks."""
    wide = config("wide-keys")
    spec = wide.spec.model_dump(by_alias=True)
    spec["source"]["fields"] += [{"name": n, "type": "string"} for n in ("k2", "k3")]
    spec["aggregations"][0]["groupBy"] = ["k", "k2", "k3"]
    bench = make_bench(wide.model_copy(update={"spec": PipelineSpec.model_validate(spec)}))
    rnd = random.Random(7)

    def noise() -> str:
        return "".join(chr(rnd.randrange(33, 127)) for _ in range(1000))

    values = [event(i, k=f"k{i % 5}") for i in range(200)]
    for place in (17, 90, 91):
        values.insert(place, event(1, k=noise(), k2=noise(), k3=noise()))
    bench.produce(values, partition=0)
    bench.start()
    bench.await_consumed(203)
    letters = bench.query('SELECT "offset", reason FROM {s}._dead_letters ORDER BY 1')
    assert letters == [(17, "refused_by_database"), (90, "refused_by_database"), (91, "refused_by_database")]
    assert {f"k{i}": 40 for i in range(5)} == counts(bench)


def test_large_events_do_not_wait_for_a_long_flush_interval(make_bench: MakeBench) -> None:
    """A batch is also full at a number of bytes, which limits the memory. A stopped processor stores its batch."""
    patient = config("large")
    spec = patient.spec.model_copy(
        update={"processor": patient.spec.processor.model_copy(update={"flush_interval": "60s"})}
    )
    bench = make_bench(patient.model_copy(update={"spec": spec}))
    bench.produce([event(i, k="a", pad="x" * 1_000_000) for i in range(45)])
    process = bench.start()
    bench.eventually(lambda: bench.consumed() >= 33, seconds=40, what="a full batch is stored")
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0
    assert 33 <= bench.consumed() <= 45


def send(bench: Bench, rnd: random.Random, number: int, start: int) -> list[tuple[str, int]]:
    """Send events to all partitions, in the order of their times, which are 10 ms apart. Return keys and numbers."""
    sent = [(f"k{rnd.randrange(20)}", start + i) for i in range(number)]
    bench.produce([event(10 * t, k=k, i=t, v=float(t)) for k, t in sent])
    return sent


def verify(bench: Bench, sent: list[tuple[str, int]]) -> None:
    """Wait until all records are consumed, and assert that each sent event is counted once."""
    bench.await_consumed(len(sent), seconds=90)
    assert Counter(key for key, _ in sent) == counts(bench)
    assert [(sum(t for _, t in sent),)] == bench.query("SELECT sum(_sum_i)::bigint FROM {s}.by_k_v1")
    assert bench.query("SELECT count(*) FROM {s}._dead_letters") == [(0,)]


def test_kills_at_random_moments_lose_and_repeat_no_event(make_bench: MakeBench) -> None:
    bench = make_bench(config("killed"))
    rnd, sent = random.Random(11), []
    for _ in range(6):
        process = bench.start()
        sent += send(bench, rnd, 4_000, len(sent))
        time.sleep(rnd.uniform(0.3, 1.8))
        process.send_signal(signal.SIGKILL)
        process.wait()
    bench.start()
    verify(bench, sent)


def test_a_frozen_processor_is_fenced_when_it_wakes(make_bench: MakeBench) -> None:
    """Another processor gets the partitions after the session timeout. The woken processor counts no event again."""
    bench = make_bench(config("frozen"))
    rnd = random.Random(5)
    first = bench.start(0)
    sent = send(bench, rnd, 2_000, 0)
    bench.await_consumed(len(sent))
    os.kill(first.pid, signal.SIGSTOP)
    bench.start(1)
    sent += send(bench, rnd, 3_000, len(sent))
    bench.await_consumed(len(sent), seconds=60)
    os.kill(first.pid, signal.SIGCONT)
    sent += send(bench, rnd, 3_000, len(sent))
    verify(bench, sent)


def test_counts_are_exact_while_replicas_start_and_stop(make_bench: MakeBench) -> None:
    bench = make_bench(config("replicas"))
    rnd = random.Random(3)
    sent: list[tuple[str, int]] = []
    running = [bench.start(0)]
    for step in range(4):
        sent += send(bench, rnd, 3_000, len(sent))
        if step % 2 == 0:
            running += [bench.start(1), bench.start(2)]
            for index in (-1, -2):
                bench.eventually(lambda at=index: bench.health(at), what="a new replica answers")
        else:
            for process in running[1:]:
                process.terminate()
                assert process.wait(20) == 0
            running = running[:1]
    verify(bench, sent)


def test_a_reset_of_the_consumer_group_changes_no_count(make_bench: MakeBench) -> None:
    bench = make_bench(config("reset"))
    sent = send(bench, random.Random(1), 2_000, 0)
    process = bench.start()
    bench.await_consumed(len(sent))
    process.terminate()
    process.wait(20)
    group = "tidemill.tests.reset"
    beginning = [TopicPartition(bench.config.events_topic, p, 0) for p in range(3)]
    kafka = AdminClient({"bootstrap.servers": bench.servers.kafka})

    def reset() -> bool:
        futures = kafka.alter_consumer_group_offsets([ConsumerGroupTopicPartitions(group, beginning)]).values()
        errors = [str(error) for future in futures if (error := future.exception(10)) is not None]
        # Kafka may not have removed the last member of the group yet.
        assert all("UNKNOWN_MEMBER_ID" in error or "NON_EMPTY_GROUP" in error for error in errors), errors
        return not errors

    bench.eventually(reset, seconds=20, what="the group is reset")
    bench.start()
    sent += send(bench, random.Random(2), 500, len(sent))
    verify(bench, sent)


def test_windows_close_and_are_published_with_anomalies(make_bench: MakeBench, documented: Callable[..., None]) -> None:
    """Each closed window is published with a unique id. A late event becomes a dead letter of each aggregation."""
    bench = make_bench(config("closing", eventTime={"field": "ts", "idleTimeout": "2s", "maxDisorder": "1s"}))
    bench.start()
    minutes = 12
    values = [
        event(60_000 * m + 1_000 * s, k="a", v=float(s % 3), i=1) for m in range(minutes) for s in range(0, 60, 5)
    ]
    spike = event(60_000 * 9 + 30_000, k="a", v=1_000.0, i=1)
    bench.produce([*values, spike])
    bench.await_consumed(len(values) + 1)
    until = BASE + (minutes - 1) * 60_000
    closed = "SELECT closed_until FROM {s}._aggregations WHERE name = 'by_k'"
    bench.eventually(lambda: bench.query(closed)[0][0] == until, what="windows are closed up to the watermark")
    bench.produce([event(0, k="a", v=1.0)])
    bench.eventually(
        lambda: bench.query("SELECT count(*) FROM {s}._dead_letters")[0][0] == 2,
        what="the event is late for both aggregations",
    )
    late = bench.query("SELECT aggregation, reason, windows FROM {s}._dead_letters ORDER BY 1")
    assert late[0] == ("by_k", "late", [BASE])
    assert late[1][:2] == ("hops", "late")
    assert sorted(late[1][2]) == [BASE - 120_000, BASE - 60_000, BASE]
    results = read_all(bench, "results", (minutes - 1) + (minutes - 1))
    by_k = [json.loads(m.value()) for m in results if dict(m.headers())["aggregation"] == b"by_k"]
    assert sorted(r["metrics"]["n"] for r in by_k) == [12] * (minutes - 2) + [13]
    ids = [dict(m.headers())["id"] for m in results]
    assert len(set(ids)) == len(ids)
    for message in results:
        record = json.loads(message.value())
        documented("results", record)
        assert json.loads(message.key()) == record["group"]
    bench.eventually(lambda: bench.query("SELECT count(*) FROM {s}._anomalies")[0][0], what="the spike is an anomaly")
    assert bench.query("SELECT anomaly, metric, group_key ->> 'k', value FROM {s}._anomalies") == [
        ("spike", "top", "a", 1000.0)
    ]
    anomaly = json.loads(read_all(bench, "anomalies", 1)[0].value())
    assert (anomaly["anomaly"], anomaly["value"]) == ("spike", 1000.0)
    documented("anomalies", anomaly)


def test_events_are_stored_if_the_spec_says_it(make_bench: MakeBench) -> None:
    plain = config("kept")
    spec = plain.spec.model_copy(update={"events": plain.spec.events.model_copy(update={"store": True})})
    bench = make_bench(plain.model_copy(update={"spec": spec}))
    bench.start()
    bench.produce([event(i, k="a", i=i) for i in range(50)])
    bench.await_consumed(50)
    assert bench.query("SELECT count(*), sum((data ->> 'i')::int) FROM {s}._events") == [(50, 1225)]


def test_a_recreated_topic_starts_an_epoch_and_is_recorded_as_a_loss(make_bench: MakeBench) -> None:
    bench = make_bench(config("anew"))
    process = bench.start()
    bench.produce([event(i, k="a") for i in range(30)])
    bench.await_consumed(30)
    process.terminate()
    process.wait(20)
    kafka, topic = KafkaAdmin(bench.servers.kafka), bench.config.events_topic
    kafka.delete(topic)
    kafka.create(topic, 3)
    bench.produce([event(i, k="b") for i in range(9)])
    bench.start()
    bench.await_consumed(39)
    assert counts(bench) == {"a": 30, "b": 9}
    assert bench.query("SELECT DISTINCT reason FROM {s}._lost") == [("topic_recreated",)]
    assert bench.query("SELECT DISTINCT epoch FROM {s}._offsets") == [(1,)]


def test_events_of_an_added_partition_that_expired_unread_are_recorded_as_lost(make_bench: MakeBench) -> None:
    """The operator has stored the first offset of the added partition. Events expire before a processor reads it."""
    bench = make_bench(config("added"))
    bench.query("UPDATE {s}._offsets SET next_offset = 0 WHERE partition = 2 RETURNING partition")
    bench.produce([event(i, k="a", i=i) for i in range(60)])
    expired = TopicPartition(bench.config.events_topic, 2, 20)
    kafka = AdminClient({"bootstrap.servers": bench.servers.kafka})
    kafka.delete_records([expired])[expired].result(20)
    bench.start()
    bench.await_consumed(40)
    lost = "SELECT partition, epoch, from_offset, to_offset, reason FROM {s}._lost"
    assert bench.query(lost) == [(2, 0, 0, 20, "expired")]
