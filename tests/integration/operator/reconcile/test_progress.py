"""Tests of how the observer reads the progress of partitions from a real Kafka and Postgres."""

from __future__ import annotations

from dataclasses import replace

import psycopg
import pytest
from confluent_kafka import Producer

from pipelines.applied_pipeline import SCHEMA, TOPICS, AppliedPipeline
from tidemill_operator.actuators.kafka.log import KafkaLog
from tidemill_operator.addresses import PostgresAddress
from tidemill_operator.errors import Reason, TidemillError
from tidemill_operator.keys import Key
from tidemill_operator.observer.observer import KAFKA_SECONDS, Observer
from tidemill_operator.observer.progress import Look, Progress

pytestmark = pytest.mark.integration


def test_how_far_partitions_are_is_told_at_each_look(bench: AppliedPipeline) -> None:
    """Nothing waits in a schema that is not there; servers that do not answer are told for each pipeline."""
    bench.apply()
    found = _looked(bench.servers.kafka, bench.servers.postgres)
    assert found == {"orders": {partition: Progress(0, (None, None)) for partition in range(3)}, "nothing": {}}
    producer = Producer({"bootstrap.servers": bench.servers.kafka})
    for _ in range(2):
        producer.produce(TOPICS[0], b"{}", partition=1)
    assert producer.flush(30) == 0
    with psycopg.connect(bench.servers.postgres.url, autocommit=True) as connection:
        connection.execute(f'UPDATE "{SCHEMA}"._offsets SET next_offset = 1 WHERE partition = 1')
        connection.execute(f'UPDATE "{SCHEMA}"._offsets SET end_confirmed_at = to_timestamp(7) WHERE partition = 2')
    look = _looked(bench.servers.kafka, bench.servers.postgres)["orders"]
    assert look == {0: Progress(0, (None, None)), 1: Progress(1, (1, None)), 2: Progress(0, (None, 7000))}
    for server, looks in (
        ("Postgres", _looked(bench.servers.kafka, replace(bench.servers.postgres, port=1))),
        ("Kafka", _looked("127.0.0.1:1", bench.servers.postgres)),
    ):
        away = looks["orders"]
        assert isinstance(away, TidemillError), server
        assert away.reason == Reason.UNREACHABLE, server


def _looked(kafka: str, postgres: PostgresAddress) -> dict[str, Look]:
    """What an observer tells at one look, of a pipeline and of one whose schema is not there."""
    found: dict[str, Look] = {}

    def tell(key: Key, _schema: str, _topic: str, look: Look) -> None:
        found[key.name] = look

    observer = Observer(KafkaLog(kafka, timeout_seconds=KAFKA_SECONDS), postgres, lambda *_: None, progress=tell)
    observer.watch(Key("rectest", "orders", "uid-1"), SCHEMA, TOPICS[0])
    observer.watch(Key("rectest", "nothing", "uid-2"), "rectest__nothing", "rectest.nothing.events")
    observer.look()
    return found
