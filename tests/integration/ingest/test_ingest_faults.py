"""Tests of ingest while a real Kafka is killed, frozen or not started.

They check answers and health, and that no acknowledged event is lost. One test makes the producer fail.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from confluent_kafka import KafkaError

from tidemill_chassis.resilience.config import Deadline, ResilienceConfig
from tidemill_contract.runtime import WorkloadSettings
from tidemill_ingest.kafka.delivery import queue_records, wait_for_delivery
from tidemill_ingest.kafka.monitor import KafkaMonitor
from tidemill_ingest.kafka.sink import Sink
from tidemill_ingest.records import Records
from waiting import eventually_async

pytestmark = [pytest.mark.integration, pytest.mark.slow]

GOOD = b'{"country": "NO", "amount": 12.5, "ts": "2026-03-01T10:00:01Z"}'
ANSWERED_SECONDS = 15.0
"""The longest time from the freeze of Kafka until waiting requests are answered."""
QUICK = {"TIDEMILL_RESILIENCE__BREAKERS__KAFKA_PRODUCER__OPEN_SECONDS": "3"}


@pytest.fixture(scope="module")
def own_kafka(own_servers: Callable[..., Any]) -> Any:
    """Start a Kafka that tests may kill. Each test leaves it running."""
    return own_servers(needs=("kafka",))


class Flow:
    """Sends different events from two threads until the context ends.

    Attributes:
        acknowledged: events that ingest has accepted.
        refused: answers to other requests.
    """

    def __init__(self, ingest: Any, pipeline: str) -> None:
        self.acknowledged: set[bytes] = set()
        self.refused: list[httpx.Response] = []
        self._ingest, self._pipeline = ingest, pipeline
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(worker,)) for worker in range(2)]

    def __enter__(self) -> Flow:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    def _run(self, worker: int) -> None:
        number = 0
        with httpx.Client(timeout=60) as client:
            while not self._stopping.is_set():
                sent = [
                    b'{"country": "NO", "amount": %d.%d, "ts": 1772359201000}' % (number + i, worker) for i in range(10)
                ]
                number += 10
                answer = client.post(
                    self._ingest.events_url(self._pipeline),
                    content=b"\n".join(sent),
                    headers={"content-type": "application/x-ndjson"},
                )
                if answer.status_code == 200:
                    self.acknowledged.update(sent)
                elif answer.status_code == 207:
                    failed = {row["index"] for row in answer.json()["results"]}
                    self.acknowledged.update(event for i, event in enumerate(sent) if i not in failed)
                else:
                    self.refused.append(answer)
                    self._stopping.wait(0.2)


class Retrying:
    """Sends batches from four threads until the context ends.

    Each batch has an Idempotency-Key. The two processes receive the batch in turn until one of them accepts.

    Attributes:
        acknowledged: events of accepted batches.
        codes: problem codes of all refusals.
        unsure: the number of answers that do not know whether events were written.
    """

    def __init__(self, pair: list[Any], pipeline: str) -> None:
        self.acknowledged: list[bytes] = []
        self.codes: set[str] = set()
        self.unsure = 0
        self._urls = [ingest.events_url(pipeline) for ingest in pair]
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(worker,)) for worker in range(4)]

    def __enter__(self) -> Retrying:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    def _run(self, worker: int) -> None:
        number = 0
        # The first client gives up after two seconds. Then it does not know whether its batch was accepted.
        with httpx.Client(timeout=2.0 if worker == 0 else 60.0) as client:
            while not self._stopping.is_set():
                batch = [
                    b'{"country": "NO", "amount": %d.%d, "ts": 1772359201000}' % (number + i, worker) for i in range(10)
                ]
                self._deliver(client, batch, f"{worker}-{number}")
                number += 10

    def _deliver(self, client: httpx.Client, batch: list[bytes], key: str) -> None:
        headers = {"content-type": "application/x-ndjson", "idempotency-key": key}
        for attempt in range(1_000):
            try:
                answer = client.post(self._urls[attempt % 2], content=b"\n".join(batch), headers=headers)
            except httpx.TransportError:
                continue
            self.unsure += "idempotency-unsure" in answer.headers
            if answer.status_code == 200:
                self.acknowledged.extend(batch)
                return
            assert answer.status_code == 503, answer.text
            self.codes.add(answer.json()["code"])
            time.sleep(0.05)


def test_requests_are_refused_while_kafka_is_down_and_accepted_after_its_restart(
    own_kafka: Any, make_ingest: Callable[..., Any]
) -> None:
    """Without Kafka, requests get 503 with Retry-After, health fails within 30 s, and the breaker opens."""
    ingest = make_ingest(own_kafka.kafka, **QUICK)
    config = ingest.add(ingest.pipeline_config("kafka-goes"))
    ingest.start()
    kafka = own_kafka.handles["kafka"]
    with Flow(ingest, config.name) as flow:
        ingest.eventually(lambda: len(flow.acknowledged) > 200, seconds=30, what="events are acknowledged")
        kafka.kill()
        ingest.eventually(
            lambda: ingest.health().get("status") == "unhealthy", seconds=30, what="/health reports Kafka"
        )
        assert ingest.get("/readyz") == 200, "a pod that is not ready could not answer with Retry-After"
        assert ingest.get("/livez") == 200
        ingest.eventually(
            lambda: ingest.health()["dependencies"]["kafka"]["breaker"] == "open", seconds=60, what="the breaker opens"
        )
        before = len(flow.acknowledged)
        began = time.monotonic()
        answer = ingest.post(config.name, GOOD)
        assert time.monotonic() - began < 10, "the refusal took as long as the publish timeout"
        assert (answer.status_code, answer.json()["code"], answer.json()["retry"]) == (503, "kafka_unavailable", 1)
        assert int(answer.headers["retry-after"]) >= 1
        kafka.start()
        ingest.eventually(lambda: ingest.health().get("status") == "healthy", seconds=60, what="/health recovers")
        ingest.eventually(lambda: len(flow.acknowledged) > before + 200, seconds=60, what="events are accepted again")
    assert {response.status_code for response in flow.refused} == {503}
    assert flow.acknowledged - {record.value() for record in ingest.written(config.events_topic)} == set()
    assert "Traceback" not in ingest.log


def test_health_follows_a_frozen_kafka_without_traffic(own_kafka: Any, make_ingest: Callable[..., Any]) -> None:
    """Waiting requests are answered. The breaker closes soon after Kafka continues, in spite of its long pause."""
    pause = {f"TIDEMILL_RESILIENCE__BREAKERS__KAFKA_PRODUCER__{key}_SECONDS": "60" for key in ("OPEN", "FIRST_PAUSE")}
    ingest = make_ingest(own_kafka.kafka, **pause)
    config = ingest.add(ingest.pipeline_config("kafka-freezes"))
    ingest.start()
    pid = own_kafka.handles["kafka"].pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        began = time.monotonic()
        keys: list[dict[str, str]] = [{}, {"idempotency_key": "frozen"}]
        with ThreadPoolExecutor() as pool:
            answers = list(pool.map(lambda key: ingest.post(config.name, GOOD, **key), keys))
        assert time.monotonic() - began < ANSWERED_SECONDS, "the answers took as long as the publish timeout"
        assert [(answer.status_code, answer.json()["retry"]) for answer in answers] == [(503, 1)] * 2
        assert all(int(answer.headers["retry-after"]) >= 1 for answer in answers)
        assert ingest.health().get("status") == "unhealthy"
        for _ in range(5):
            began = time.monotonic()
            assert ingest.post(config.name, GOOD).status_code == 503
            assert time.monotonic() - began < 5, "the open breaker does not refuse at once"
        assert ingest.get("/readyz") == 200
        assert ingest.health()["dependencies"]["kafka"]["breaker"] != "closed"
    finally:
        os.kill(pid, signal.SIGCONT)
    ingest.eventually(lambda: ingest.health().get("status") == "healthy", seconds=20, what="/health recovers")
    assert ingest.health()["dependencies"]["kafka"]["breaker"] == "closed"
    assert ingest.post(config.name, GOOD).status_code == 200


def test_events_that_wait_for_kafka_are_answered_within_the_request_time(
    own_kafka: Any, make_ingest: Callable[..., Any]
) -> None:
    """A request in flight when Kafka freezes gets 503 and rows with `retry`, instead of a 504."""
    ingest = make_ingest(own_kafka.kafka, TIDEMILL_RESILIENCE__TIMEOUTS__API_REQUEST_SECONDS="4")
    config = ingest.add(ingest.pipeline_config("in-flight"))
    ingest.start()
    assert ingest.post(config.name, GOOD).status_code == 200
    pid = own_kafka.handles["kafka"].pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        answer = ingest.post(config.name, GOOD, idempotency_key="one")
        assert (answer.status_code, answer.json()["retry"]) == (503, 1), answer.text
    finally:
        os.kill(pid, signal.SIGCONT)
    ingest.eventually(lambda: ingest.health().get("status") == "healthy", seconds=60, what="/health recovers")
    again = ingest.post(config.name, GOOD, idempotency_key="one")
    assert again.status_code == 200
    assert again.headers["idempotency-replayed"] == "true", "the batch was sent again instead of awaited"
    assert len(ingest.written(config.events_topic)) == 2


def test_batches_that_are_retried_while_kafka_is_frozen_are_written_once(
    own_kafka: Any, servers: Any, make_ingest: Callable[..., Any]
) -> None:
    """Clients send each batch with its key to two processes in turn. The topic has each acknowledged event once."""
    quick = {"TIDEMILL_REDIS_URL": servers.redis, "TIDEMILL_RESILIENCE__TIMEOUTS__API_REQUEST_SECONDS": "3"}
    pair = [make_ingest(own_kafka.kafka, **quick), make_ingest(own_kafka.kafka, **quick)]
    config = pair[0].add(pair[0].pipeline_config("retried"))
    pair[1].add(config, topic=False)
    for ingest in pair:
        ingest.start()
    pid = own_kafka.handles["kafka"].pid
    assert pid is not None
    with Retrying(pair, config.name) as clients:
        pair[0].eventually(lambda: len(clients.acknowledged) > 200, seconds=30, what="events are acknowledged")
        os.kill(pid, signal.SIGSTOP)
        try:
            codes = {"not_acknowledged", "batch_under_way"}
            pair[0].eventually(
                lambda: codes <= clients.codes, seconds=30, what="batches are not acknowledged and are retried"
            )
        finally:
            os.kill(pid, signal.SIGCONT)
        before = len(clients.acknowledged)
        pair[0].eventually(
            lambda: len(clients.acknowledged) > before + 200, seconds=90, what="events are accepted again"
        )
    written = [record.value() for record in pair[0].written(config.events_topic)]
    assert sorted(written) == sorted(clients.acknowledged)
    assert clients.unsure == 0
    assert "Traceback" not in pair[0].log + pair[1].log


def test_ingest_that_starts_before_kafka_becomes_ready_with_it(own_kafka: Any, make_ingest: Callable[..., Any]) -> None:
    ingest = make_ingest(own_kafka.kafka)
    config = ingest.add(ingest.pipeline_config("before-kafka"))
    kafka = own_kafka.handles["kafka"]
    kafka.stop()
    ingest.spawn()
    ingest.eventually(lambda: ingest.get("/livez") == 200, seconds=30, what="ingest answers")
    assert ingest.get("/readyz") == 503
    kafka.start()
    ingest.eventually(lambda: ingest.get("/readyz") == 200, seconds=60, what="ingest is ready")
    assert ingest.post(config.name, GOOD).status_code == 200


def test_a_fatal_error_of_the_producer_creates_a_new_producer(
    servers: Any, make_ingest: Callable[..., Any], tmp_path: Path
) -> None:
    """Kafka is not up until the new producer has reached it. Each record of the old producer gets an outcome."""
    config = make_ingest(servers.kafka).add(make_ingest(servers.kafka).pipeline_config("fatal"))
    guard = ResilienceConfig().guards().kafka_producer
    records = Records([b"1", b"2"], None, {}, {})
    deadline = Deadline.after(60)

    async def scenario() -> None:
        sink = Sink(WorkloadSettings(kafka_brokers=servers.kafka), guard, request_seconds=30)
        sink.start()
        monitor = KafkaMonitor(sink, guard)
        first = sink.producer
        pending = queue_records(sink, config.events_topic, records, with_offsets=True)
        sink._quick.on_error(KafkaError(KafkaError._FATAL, "made up", fatal=True))
        delivery = await wait_for_delivery(
            sink, config.events_topic, records, pending, with_offsets=True, deadline=deadline
        )
        assert delivery.failed.keys() | delivery.offsets.keys() == {0, 1}
        assert sink.producer is not first
        assert not monitor.up
        monitor_task = asyncio.create_task(monitor.run())
        await eventually_async(lambda: monitor.up, what="the new producer has reached Kafka")
        after = queue_records(sink, config.events_topic, records, with_offsets=True)
        delivery = await wait_for_delivery(
            sink, config.events_topic, records, after, with_offsets=True, deadline=deadline
        )
        assert delivery.failed == {}
        monitor_task.cancel()
        await asyncio.wait([monitor_task])
        assert await sink.close(10) == 0

    asyncio.run(scenario())
