"""Test of the observer: it reads the progress of partitions from a real Kafka and Postgres."""

from __future__ import annotations

from dataclasses import replace

import psycopg
import pytest
from confluent_kafka import Producer

from pipelines.applied_pipeline import SCHEMA, TOPICS, AppliedPipeline
from tidemill_operator.actuators.kafka.offsets import OffsetReader
from tidemill_operator.addresses import PostgresAddress
from tidemill_operator.errors import Reason, TidemillError
from tidemill_operator.keys import Key
from tidemill_operator.observer.observer import KAFKA_SECONDS, Observer
from tidemill_operator.observer.progress import Progress, ProgressResult

pytestmark = pytest.mark.integration


def test_each_look_of_the_observer_reports_the_progress_of_partitions(bench: AppliedPipeline) -> None:
    """A missing schema has no progress; a server that does not answer is an error of each pipeline."""
    bench.apply()
    progress = _observe(bench.servers.kafka, bench.servers.postgres)
    assert progress == {"orders": {partition: Progress(0, (None, None)) for partition in range(3)}, "nothing": {}}
    producer = Producer({"bootstrap.servers": bench.servers.kafka})
    for _ in range(2):
        producer.produce(TOPICS[0], b"{}", partition=1)
    assert producer.flush(30) == 0
    with psycopg.connect(bench.servers.postgres.url, autocommit=True) as connection:
        connection.execute(f'UPDATE "{SCHEMA}"._offsets SET next_offset = 1 WHERE partition = 1')
        connection.execute(f'UPDATE "{SCHEMA}"._offsets SET end_confirmed_at = to_timestamp(7) WHERE partition = 2')
    orders = _observe(bench.servers.kafka, bench.servers.postgres)["orders"]
    assert orders == {0: Progress(0, (None, None)), 1: Progress(1, (1, None)), 2: Progress(0, (None, 7000))}
    for server, progress in (
        ("Postgres", _observe(bench.servers.kafka, replace(bench.servers.postgres, port=1))),
        ("Kafka", _observe("127.0.0.1:1", bench.servers.postgres)),
    ):
        error = progress["orders"]
        assert isinstance(error, TidemillError), server
        assert error.reason == Reason.UNREACHABLE, server


def _observe(kafka: str, postgres: PostgresAddress) -> dict[str, ProgressResult]:
    """Measure once, and return the progress of a pipeline, and of a pipeline without a schema."""
    progress: dict[str, ProgressResult] = {}

    def report(key: Key, _schema: str, _topic: str, result: ProgressResult) -> None:
        progress[key.name] = result

    observer = Observer(OffsetReader(kafka, timeout_seconds=KAFKA_SECONDS), postgres, lambda *_: None, progress=report)
    observer.watch(Key("rectest", "orders", "uid-1"), SCHEMA, TOPICS[0])
    observer.watch(Key("rectest", "nothing", "uid-2"), "rectest__nothing", "rectest.nothing.events")
    observer.measure()
    return progress
