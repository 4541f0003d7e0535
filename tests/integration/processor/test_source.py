"""The source over real Kafka: what it hands over begins where it was told to, whatever the client did meanwhile."""

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
    """A source of a topic of its own, assigned its only partition; `fill` writes to the topic before."""
    sources = []

    def make(name: str, fill: Callable[[str], None]) -> Source:
        of = config(name)
        KafkaAdmin(servers.kafka).create(of.events_topic)
        fill(of.events_topic)
        source = Source(WorkloadSettings(kafka_brokers=servers.kafka), of)
        sources.append(source)
        source.subscribe()
        assigned(source)
        return source

    yield make
    for source in sources:
        source.close()


def read(source: Source, position: int, *, until: int) -> list[int]:
    """Offsets of the records handed over, while the partition is started at the first one missing, as the loop does."""
    offsets: list[int] = []
    deadline = time.monotonic() + 60
    while position < until and time.monotonic() < deadline:
        if not source.ready:
            source.start({0: position})
        found = [message.offset() for message in source.poll(7, 0.2).messages]
        offsets += found
        position = max(position, *(offset + 1 for offset in found)) if found else position
    return offsets


def test_reading_begins_where_it_is_told(servers: Any, open_source: Callable[..., Source]) -> None:
    def fill(topic: str) -> None:
        producer = Producer({"bootstrap.servers": servers.kafka})
        for _ in range(50):
            producer.produce(topic, b"{}")
        producer.flush()

    source = open_source("begin", fill)
    assert read(source, 20, until=50) == list(range(20, 50))


@pytest.mark.parametrize("elsewhere", [5, 40, 50])
def test_a_seek_that_another_one_overtakes_is_made_again(
    elsewhere: int, servers: Any, open_source: Callable[..., Source]
) -> None:
    """Before, behind, at the end of the partition: no record is left out or comes before its turn."""

    def fill(topic: str) -> None:
        producer = Producer({"bootstrap.servers": servers.kafka})
        for _ in range(50):
            producer.produce(topic, b"{}")
        producer.flush()

    source = open_source(f"overtaken-{elsewhere}", fill)
    while not source.ready:
        source.start({0: 20})
    source._consumer.seek(TopicPartition(source.topic, 0, elsewhere))
    assert read(source, 20, until=50) == list(range(20, 50))


def test_offsets_that_hold_no_record_are_passed(servers: Any, open_source: Callable[..., Source]) -> None:
    """A transaction's marker takes an offset, to which a position may point."""

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


def test_a_named_member_that_ends_is_not_waited_for(servers: Any) -> None:
    """Others have its partition long before its session would be over."""
    of = config("leaving")
    KafkaAdmin(servers.kafka).create(of.events_topic)
    ending, staying = (Source(WorkloadSettings(kafka_brokers=servers.kafka, instance=f"p-{n}"), of) for n in range(2))
    ending.subscribe()
    assigned(ending)
    staying.subscribe()
    began = time.monotonic()
    ending.close()
    try:
        assigned(staying)
    finally:
        staying.close()
    assert time.monotonic() - began < WorkloadSettings().session_timeout_ms / 1000 / 2


def test_a_member_that_was_fenced_goes_on_with_another_client(servers: Any) -> None:
    """The client's error is fatal: without that, it would stand still for good."""
    of = config("fenced")
    KafkaAdmin(servers.kafka).create(of.events_topic)
    fenced, other = (Source(WorkloadSettings(kafka_brokers=servers.kafka, instance="p-0"), of) for _ in range(2))
    fenced.subscribe()
    assigned(fenced)
    other.subscribe()
    deadline, failed = time.monotonic() + 60, None
    while not kafka_fatal(failed) and time.monotonic() < deadline:
        failed = fenced.poll(10, 0.1).failed
        other.poll(10, 0.1)
        fenced.report_offsets({0: 0})
    assert kafka_fatal(failed)
    other.close()
    fenced.renew()
    try:
        assert fenced.assigned == frozenset()
        assigned(fenced)
    finally:
        fenced.close()


def assigned(source: Source) -> None:
    """Poll until it has the partition."""
    deadline = time.monotonic() + 60
    while not source.assigned and time.monotonic() < deadline:
        source.poll(10, 0.1)
    assert source.assigned == {0}
