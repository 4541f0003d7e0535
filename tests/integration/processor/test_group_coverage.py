"""A topic grows while a member of the group that has a name is killed and back in time: all partitions are read."""

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
from tidemill_processor.source.positions import Positions

pytestmark = pytest.mark.integration

BASE = 1_700_000_000_000 // 60_000 * 60_000
SESSION_MS = 24_000
"""Long enough that who was killed is back before the group gives its partitions away."""


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


def member(servers: Any, of: PipelineConfig, name: str) -> Source:
    """A named member of the group that has joined."""
    settings = WorkloadSettings(kafka_brokers=servers.kafka, instance=name, session_timeout_ms=SESSION_MS)
    source = Source(settings, of)
    source.subscribe()
    return source


def polled(*sources: Source, until: Callable[[], bool], seconds: float = 60.0) -> bool:
    """Whether that comes true while these members poll."""
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


def test_partitions_that_nobody_has_are_shared_out_once_all_members_join_again(servers: Any) -> None:
    """The first member, which leads the group, is killed; the one that stays cannot make up for it."""
    of, kafka = config("members"), KafkaAdmin(servers.kafka)
    kafka.create(of.events_topic, 2)
    killed = member(servers, of, "p-0")
    assert polled(killed, until=lambda: killed.assigned == {0, 1})
    staying = member(servers, of, "p-1")
    assert polled(
        killed, staying, until=lambda: {killed.assigned, staying.assigned} == {frozenset({0}), frozenset({1})}
    )
    killed._consumer.close()  # type: ignore[no-untyped-call]  # leaves no group: it has a name
    kafka.grow(of.events_topic, 5)
    back = member(servers, of, "p-0")
    with closed(staying, back):
        assert polled(staying, back, until=lambda: bool(back.assigned))
        assert back.assigned | staying.assigned == {0, 1}
        staying.subscribe()
        assert not polled(staying, back, until=lambda: len(back.assigned | staying.assigned) > 2, seconds=2.0)
        back.subscribe()
        assert polled(staying, back, until=lambda: back.assigned | staying.assigned == {0, 1, 2, 3, 4})
        assert not back.assigned & staying.assigned


def test_a_partition_is_untaken_until_it_was_taken_up_in_this_topic(make_schema: Callable[..., Any]) -> None:
    connection, database = make_schema(config("untaken"))
    lookup = Positions(database, config("untaken"), None)  # type: ignore[arg-type]
    assert lookup.untaken(connection, {0: "x", 1: "x"}) == frozenset()
    assert lookup.untaken(connection, {0: "made anew", 1: "made anew"}) == {0, 1}
    connection.execute(f"UPDATE {database.schema}._offsets SET topic_id = NULL WHERE partition = 1")
    assert lookup.untaken(connection, {0: "x", 1: "x"}) == {1}
    assert lookup.untaken(connection, {0: "x"}) == frozenset()


def test_a_processor_that_was_killed_reads_what_its_topic_got_meanwhile(make_bench: MakeBench, servers: Any) -> None:
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
