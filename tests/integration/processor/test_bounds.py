"""Tests that careless or hostile senders of events fill only a limited part of a real Postgres.

The number of time partitions and the size of stored dead letters are limited.
"""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from bench import Bench, MakeBench
from tidemill_contract.calendars import DAY_MS
from tidemill_contract.resource.spec import PipelineSpec
from tidemill_contract.runtime import AggregationRef, PipelineConfig

pytestmark = pytest.mark.integration

TODAY = 20_700 * DAY_MS


def config(name: str, **spec: Any) -> PipelineConfig:
    pipeline_spec = PipelineSpec.model_validate(
        {
            "source": {
                "topic": {"partitions": 1},
                "fields": [{"name": "ts", "type": "timestamp", "required": True}, {"name": "k", "type": "string"}],
                "eventTime": {"field": "ts", "idleTimeout": "10m"},
            },
            "aggregations": [
                {
                    "name": "by_k",
                    "groupBy": ["k"],
                    "window": {"type": "tumbling", "size": "1h"},
                    "metrics": [{"name": "n", "function": "count"}],
                }
            ],
            "processor": {"flushInterval": "100ms"},
            **spec,
        }
    )
    refs = (AggregationRef(name="by_k"),)
    return PipelineConfig(namespace="tests", name=name, generation=1, spec=pipeline_spec, aggregations=refs)


def tables(bench: Bench, parent: str) -> int:
    query = f"SELECT count(*) FROM pg_inherits WHERE inhparent = '{{s}}.{parent}'::regclass"
    return int(bench.query(query)[0][0])


def event(at: int) -> bytes:
    return json.dumps({"ts": at, "k": "a"}).encode()


def test_events_of_thousands_of_days_create_few_tables(make_bench: MakeBench) -> None:
    """One batch with an event for every second day since 1971 is counted in at most 450 tables per parent table."""
    bench = make_bench(config("centuries", events={"store": True}))
    bench.produce([event((366 + 2 * number) * DAY_MS) for number in range(9_000)])
    started = time.monotonic()
    bench.start()
    bench.await_consumed(9_000, seconds=120.0)
    seconds = time.monotonic() - started
    print(f"9,000 days: {seconds:.1f} s, {tables(bench, 'by_k_v1')} + {tables(bench, '_events')} tables")
    assert bench.query("SELECT sum(_count) FROM {s}.by_k_v1") == [(9_000,)]
    assert bench.query("SELECT count(*) FROM {s}._events") == [(9_000,)]
    assert bench.query("SELECT sum(invalid) FROM {s}._offsets") == [(0,)]
    assert tables(bench, "by_k_v1") <= 450
    assert tables(bench, "_events") <= 450


def test_events_older_than_the_retention_create_no_tables(make_bench: MakeBench) -> None:
    """Events that arrive after their windows were deleted become dead letters with a reason."""
    bench = make_bench(config("bygone", events={"store": True, "retention": "2d"}))
    bench.start()
    bench.produce([event(TODAY + number) for number in range(5)])
    bench.eventually(
        lambda: bench.query("SELECT 1 FROM {s}._aggregations WHERE closed_until IS NOT NULL"), what="a window is closed"
    )
    before = tables(bench, "by_k_v1"), tables(bench, "_events")
    bench.produce([*(event(TODAY - days * DAY_MS) for days in range(100, 600)), event(TODAY - 3 * DAY_MS)])
    bench.await_consumed(506)
    assert (tables(bench, "by_k_v1"), tables(bench, "_events")) == before
    letters = "SELECT reason, count(*) FROM {s}._dead_letters WHERE aggregation = 'by_k' GROUP BY 1 ORDER BY 1"
    assert bench.query(letters) == [("late", 1), ("too_old", 500)]
    assert bench.query("SELECT late_dead FROM {s}._aggregations") == [(501,)]
    ((detail,),) = bench.query("SELECT detail FROM {s}._dead_letters ORDER BY event_time LIMIT 1")
    assert "is before 2026-06-05T" in detail, detail
    assert "kept for 90d" in detail
    assert "increase the retention" in detail


def test_dead_letters_stay_within_their_quota(make_bench: MakeBench) -> None:
    """All invalid events are counted. Postgres stores dead letters up to the quota, and they are published.

    /health reports the quota.
    """
    bench = make_bench(config("flood", deadLetters={"quota": "2Mi"}))
    bench.produce([b"no JSON " + b"x" * 2_000 for _ in range(10_000)] + [event(TODAY)])
    bench.start()
    bench.await_consumed(10_001)
    assert bench.query("SELECT sum(invalid) FROM {s}._offsets") == [(10_000,)]
    kept = "SELECT sum(rows)::int, sum(bytes)::int, sum(bare)::int, sum(counted)::int FROM {s}._kept"
    ((rows, size, bare, counted),) = bench.query(kept)
    assert rows + counted == 10_000
    assert bench.query("SELECT count(*), sum(bytes), count(*) FILTER (WHERE value IS NULL) FROM {s}._dead_letters") == [
        (rows, size, bare)
    ]
    assert 0 < bare < rows
    assert size <= 2 * 1024 * 1024 * 9 // 8
    ((on_disk,),) = bench.query("SELECT pg_total_relation_size('{s}._dead_letters')")
    assert on_disk < 4 * 1024 * 1024
    ((detail,),) = bench.query("SELECT DISTINCT detail FROM {s}._dead_letters WHERE value IS NULL")
    assert detail.endswith("(value left out: spec.deadLetters.quota is used up)")
    bench.eventually(
        lambda: bench.query("SELECT count(*) FROM {s}._dead_letters WHERE published") == [(rows,)],
        what="all stored dead letters are published",
    )
    quotas = bench.eventually(
        lambda: reported if (reported := bench.health().get("quotas")) != "ok" else None,
        what="/health reports the quota",
    )
    assert quotas["dead_letters"].startswith("spec.deadLetters.quota of 2Mi is used up: of the dead letters so far ")
    assert f"{counted:,} were only counted, {bare:,} kept without value;" in quotas["dead_letters"]
    assert bench.query("SELECT sum(_count) FROM {s}.by_k_v1") == [(1,)]
