"""Tests that all partitions are read if a topic grows while a static member of the consumer group is down.

The static member has a name (`group.instance.id`) and restarts before its session ends. Kafka and Postgres are real.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from typing import Any

import pytest

from bench import MakeBench
from kafka_admin import KafkaAdmin
from tidemill_contract.resource.spec import PipelineSpec
from tidemill_contract.runtime import AggregationRef, PipelineConfig, WorkloadSettings
from tidemill_processor.source.consumer import Source
from tidemill_processor.source.positions import PositionStore

pytestmark = pytest.mark.integration

BASE = 1_700_000_000_000 // 60_000 * 60_000
SESSION_MS = 24_000
"""A killed member restarts within this time, before the group assigns its partitions to other members."""


def config(name: str) -> PipelineConfig:
    spec = PipelineSpec.model_validate(
        {
            "source": {
                "topic": {"partitions": 2},
                "fields": [{"name": "ts", "type": "timestamp", "required": True}],
                "eventTime": {"field": "ts"},
            },
            "aggregations": [
                {
                    "name": "in_all",
                    "window": {"type": "tumbling", "size": "1m"},
                    "metrics": [{"name": "n", "function": "count"}],
                }
            ],
            "processor": {"flushInterval": "100ms"},
        }
    )
    return PipelineConfig(
        namespace="covered", name=name, generation=1, spec=spec, aggregations=(AggregationRef(name="in_all"),)
    )


def member(servers: Any, pipeline: PipelineConfig, name: str) -> Source:
    """Return a static member of the group that has subscribed."""
    settings = WorkloadSettings(kafka_brokers=servers.kafka, instance=name, session_timeout_ms=SESSION_MS)
    source = Source(settings, pipeline)
    source.subscribe()
    return source


def polled(*sources: Source, until: Callable[[], bool], seconds: float = 60.0) -> bool:
    """Poll the members until the condition holds, and return whether it holds."""
    deadline = time.monotonic() + seconds
    while not until() and time.monotonic() < deadline:
        for source in sources:
            source.poll(10, 0.05)
    return until()


@contextmanager
def closed(*sources: Source) -> Iterator[None]:
    with ExitStack() as stack:
        for source in sources:
            stack.enter_context(closing(source))
        yield


def test_unassigned_partitions_are_assigned_once_all_members_join_again(servers: Any) -> None:
    """The leader of the group is killed. If only the other member joins again, new partitions stay unassigned."""
    pipeline, kafka = config("members"), KafkaAdmin(servers.kafka)
    kafka.create(pipeline.events_topic, 2)
    killed = member(servers, pipeline, "p-0")
    assert polled(killed, until=lambda: killed.assigned == {0, 1})
    staying = member(servers, pipeline, "p-1")
    assert polled(
        killed, staying, until=lambda: {killed.assigned, staying.assigned} == {frozenset({0}), frozenset({1})}
    )
    killed._consumer.close()  # type: ignore[no-untyped-call]  # A static member that closes stays in the group.
    kafka.grow(pipeline.events_topic, 5)
    restarted = member(servers, pipeline, "p-0")
    with closed(staying, restarted):
        assert polled(staying, restarted, until=lambda: bool(restarted.assigned))
        assert restarted.assigned | staying.assigned == {0, 1}
        staying.subscribe()
        assert not polled(staying, restarted, until=lambda: len(restarted.assigned | staying.assigned) > 2, seconds=2.0)
        restarted.subscribe()
        assert polled(staying, restarted, until=lambda: restarted.assigned | staying.assigned == {0, 1, 2, 3, 4})
        assert not restarted.assigned & staying.assigned


def test_a_partition_is_unread_if_it_has_no_position_in_the_current_topic(make_schema: Callable[..., Any]) -> None:
    connection, database = make_schema(config("unread"))
    position_store = PositionStore(database, config("unread"), None)  # type: ignore[arg-type]
    assert position_store.unread_partitions(connection, {0: "x", 1: "x"}) == frozenset()
    assert position_store.unread_partitions(connection, {0: "made anew", 1: "made anew"}) == {0, 1}
    connection.execute(f"UPDATE {database.schema}._offsets SET topic_id = NULL WHERE partition = 1")
    assert position_store.unread_partitions(connection, {0: "x", 1: "x"}) == {1}
    assert position_store.unread_partitions(connection, {0: "x"}) == frozenset()


def test_a_restarted_processor_reads_partitions_that_were_added_while_it_was_down(
    make_bench: MakeBench, servers: Any
) -> None:
    bench = make_bench(config("killed"), TIDEMILL_SESSION_TIMEOUT_MS=str(SESSION_MS))
    events = [json.dumps({"ts": BASE + n}).encode() for n in range(10)]
    process = bench.start()
    bench.produce(events)
    bench.await_consumed(10)
    process.kill()
    process.wait()
    bench.query(
        "INSERT INTO {s}._offsets (reader, partition, next_offset)"
        " SELECT 'live', n, 0 FROM generate_series(2, 4) n RETURNING 1"
    )
    KafkaAdmin(servers.kafka).grow(bench.config.events_topic, 5)
    bench.produce(events, partition=4)
    bench.start()
    bench.await_consumed(20, seconds=60.0)
