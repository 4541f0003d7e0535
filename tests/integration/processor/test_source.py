"""Tests of the processor's source on a real Kafka: the source returns all records from the requested position on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from confluent_kafka import Producer, TopicPartition

from kafka_admin import KafkaAdmin
from tidemill_chassis.resilience.failures import kafka_fatal
from tidemill_contract.resource.spec import PipelineSpec
from tidemill_contract.runtime import AggregationRef, PipelineConfig, WorkloadSettings
from tidemill_processor.source.consumer import Source

pytestmark = pytest.mark.integration


def config(name: str) -> PipelineConfig:
    spec = PipelineSpec.model_validate(
        {
            "source": {"topic": {"partitions": 1}, "fields": [{"name": "k", "type": "string"}]},
            "aggregations": [
                {
                    "name": "in_all",
                    "groupBy": [],
                    "window": {"type": "tumbling", "size": "1m"},
                    "metrics": [{"name": "n", "function": "count"}],
                }
            ],
        }
    )
    return PipelineConfig(
        namespace="source", name=name, generation=1, spec=spec, aggregations=(AggregationRef(name="in_all"),)
    )


@pytest.fixture
def open_source(servers: Any, request: pytest.FixtureRequest) -> Iterator[Callable[..., Source]]:
    """Return a function that creates a topic, fills it with `fill`, and opens a source with its only partition."""
    sources = []

    def make(name: str, fill: Callable[[str], None]) -> Source:
        pipeline = config(name)
        KafkaAdmin(servers.kafka).create(pipeline.events_topic)
        fill(pipeline.events_topic)
        source = Source(WorkloadSettings(kafka_brokers=servers.kafka), pipeline)
        sources.append(source)
        source.subscribe()
        await_assignment(source)
        return source

    yield make
    for source in sources:
        source.close()


def read(source: Source, position: int, *, until: int) -> list[int]:
    """Read records from a position to an offset, and return their offsets.

    Like the processor's loop, start the partition again at the first missing record whenever the source asks for it.
    """
    offsets: list[int] = []
    deadline = time.monotonic() + 60
    while position < until and time.monotonic() < deadline:
        if not source.ready:
            source.start_reading({0: position})
        polled = [message.offset() for message in source.poll(7, 0.2).messages]
        offsets += polled
        position = max(position, *(offset + 1 for offset in polled)) if polled else position
    return offsets


def test_reading_starts_at_the_given_position(servers: Any, open_source: Callable[..., Source]) -> None:
    def fill(topic: str) -> None:
        producer = Producer({"bootstrap.servers": servers.kafka})
        for _ in range(50):
            producer.produce(topic, b"{}")
        producer.flush()

    source = open_source("begin", fill)
    assert read(source, 20, until=50) == list(range(20, 50))


@pytest.mark.parametrize("elsewhere", [5, 40, 50])
def test_a_seek_is_repeated_after_the_client_sought_elsewhere(
    elsewhere: int, servers: Any, open_source: Callable[..., Source]
) -> None:
    """No record is skipped or read out of order. The client seeks to an earlier or later offset, or to the end."""

    def fill(topic: str) -> None:
        producer = Producer({"bootstrap.servers": servers.kafka})
        for _ in range(50):
            producer.produce(topic, b"{}")
        producer.flush()

    source = open_source(f"overtaken-{elsewhere}", fill)
    while not source.ready:
        source.start_reading({0: 20})
    source._consumer.seek(TopicPartition(source.topic, 0, elsewhere))
    assert read(source, 20, until=50) == list(range(20, 50))


def test_offsets_without_a_record_are_skipped(servers: Any, open_source: Callable[..., Source]) -> None:
    """The marker at the end of a transaction takes an offset. A position may be the offset of a marker."""

    def fill(topic: str) -> None:
        producer = Producer({"bootstrap.servers": servers.kafka, "transactional.id": "source-gaps"})
        producer.init_transactions(30)
        for _ in range(2):
            producer.begin_transaction()
            for _ in range(10):
                producer.produce(topic, b"{}")
            producer.commit_transaction(30)

    source = open_source("gaps", fill)
    assert read(source, 10, until=21) == list(range(11, 21))


def test_the_partition_of_a_static_member_that_closes_is_assigned_at_once(servers: Any) -> None:
    """Another member gets the partition in less than half of the session timeout."""
    pipeline = config("leaving")
    KafkaAdmin(servers.kafka).create(pipeline.events_topic)
    ending, staying = (
        Source(WorkloadSettings(kafka_brokers=servers.kafka, instance=f"p-{n}"), pipeline) for n in range(2)
    )
    ending.subscribe()
    await_assignment(ending)
    staying.subscribe()
    began = time.monotonic()
    ending.close()
    try:
        await_assignment(staying)
    finally:
        staying.close()
    assert time.monotonic() - began < WorkloadSettings().session_timeout_ms / 1000 / 2


def test_a_fenced_member_continues_with_a_new_client(servers: Any) -> None:
    """The error of the fenced client is fatal. Without a new client, the member would never read again."""
    pipeline = config("fenced")
    KafkaAdmin(servers.kafka).create(pipeline.events_topic)
    fenced, other = (Source(WorkloadSettings(kafka_brokers=servers.kafka, instance="p-0"), pipeline) for _ in range(2))
    fenced.subscribe()
    await_assignment(fenced)
    other.subscribe()
    deadline, failed = time.monotonic() + 60, None
    while not kafka_fatal(failed) and time.monotonic() < deadline:
        failed = fenced.poll(10, 0.1).error
        other.poll(10, 0.1)
        fenced.report_offsets({0: 0})
    assert kafka_fatal(failed)
    other.close()
    fenced.replace_consumer()
    try:
        assert fenced.assigned == frozenset()
        await_assignment(fenced)
    finally:
        fenced.close()


def await_assignment(source: Source) -> None:
    """Poll until the source has the partition."""
    deadline = time.monotonic() + 60
    while not source.assigned and time.monotonic() < deadline:
        source.poll(10, 0.1)
    assert source.assigned == {0}
