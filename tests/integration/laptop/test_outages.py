"""Test of outages of the real servers under a whole `tidemill up`, while events arrive over HTTP.

The test kills each server and starts it again. No acknowledged event is lost, and aggregates equal a recomputation from
the topic. /health reports the outage and its end, and no process restarts.
"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from confluent_kafka import Consumer, TopicPartition

from demo.runtime import Runtime, until
from waiting import eventually

pytestmark = [pytest.mark.integration, pytest.mark.slow]

BASE_MS = 1_700_000_000_000 // 60_000 * 60_000
REPORTED_WITHIN_SECONDS = 30.0
QUICK = {
    f"TIDEMILL_RESILIENCE__BREAKERS__{name}__OPEN_SECONDS": "2"
    for name in ("DATABASE", "KAFKA_CONSUMER", "KAFKA_PRODUCER", "REDIS")
}
PIPELINE = {
    "apiVersion": "tidemill.dev/v1alpha1",
    "kind": "AnalyticsPipeline",
    "metadata": {"name": "outages", "namespace": "tests"},
    "spec": {
        "source": {
            "topic": {"partitions": 2},
            "fields": [
                {"name": "id", "type": "integer", "required": True},
                {"name": "k", "type": "string", "required": True},
                {"name": "ts", "type": "timestamp", "required": True},
            ],
            "key": "k",
            "eventTime": {"field": "ts", "maxDisorder": "1h"},
        },
        "aggregations": [
            {
                "name": "by_k",
                "groupBy": ["k"],
                "window": {"type": "tumbling", "size": "1m"},
                "metrics": [
                    {"name": "events", "function": "count"},
                    {"name": "ids", "function": "sum", "field": "id"},
                ],
            }
        ],
        "processor": {"flushInterval": "200ms"},
        "api": {"cacheTtl": "1s"},
    },
}
# The status in /health of each process while a server is down.
EXPECTED = {
    "postgres": {"processor": "unhealthy", "api": "unhealthy", "ingest": "healthy"},
    "redis": {"processor": "degraded", "api": "degraded", "ingest": "degraded"},
    "kafka": {"processor": "unhealthy", "api": "healthy", "ingest": "unhealthy"},
}


class Sender:
    """A thread that posts small batches and records the ids that ingest acknowledged."""

    def __init__(self, url: str) -> None:
        self._url = f"{url}/v1/pipelines/outages/events"
        self.acknowledged: set[int] = set()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Sender:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        number = 0
        with httpx.Client(timeout=40.0, trust_env=False) as client:
            while not self._stopping.is_set():
                events = [{"id": i, "k": f"k{i % 7}", "ts": BASE_MS + i * 20} for i in range(number, number + 50)]
                number += 50
                try:
                    answer = client.post(self._url, json=events, params={"results": "all"})
                except httpx.TransportError:
                    continue
                if answer.status_code in (200, 207):
                    accepted = {row["index"] for row in answer.json()["results"] if row["status"] == "accepted"}
                    self.acknowledged.update(events[index]["id"] for index in accepted)
                self._stopping.wait(0.05)


@contextmanager
def running(servers: Any, folder: Path) -> Iterator[Runtime]:
    (folder / "spec.yaml").write_text(yaml.safe_dump(PIPELINE))
    environment = {
        **QUICK,
        "TIDEMILL_KAFKA_BROKERS": servers.kafka,
        "TIDEMILL_POSTGRES_URL": servers.postgres.url,
        "TIDEMILL_REDIS_URL": servers.redis,
        "TIDEMILL_SESSION_TIMEOUT_MS": "6000",
    }
    runtime = Runtime(folder / "spec.yaml", folder / "up", environment=environment, any_ports=True)
    runtime.start()
    try:
        yield runtime
    finally:
        status = runtime.stop()
        if status != 0:
            print(runtime.log.read_text()[-20_000:])
        assert status == 0


def healths(runtime: Runtime) -> dict[str, str]:
    """Return the status in /health of each component; empty: it does not answer."""
    statuses = {}
    for name, state in runtime.status()["workloads"].items():
        component = next(part for part in ("processor", "ingest", "api") if part in name)
        try:
            answer = httpx.get(f"http://127.0.0.1:{state['port']}/health", timeout=10.0, trust_env=False)
            body = answer.json()
            assert (answer.status_code == 503) == (body["status"] == "unhealthy")
            statuses[component] = body["status"]
        except httpx.TransportError:
            statuses[component] = ""
    return statuses


def await_healths(runtime: Runtime, expected: dict[str, str], *, seconds: float, why: str) -> None:
    """Wait until one pass over all components finds the wanted status of each."""
    statuses: dict[str, str] = {}

    def as_wanted() -> bool:
        nonlocal statuses
        statuses = healths(runtime)
        return statuses == expected

    eventually(as_wanted, what=lambda: f"{expected} after {why}, not {statuses}", seconds=seconds, pause_seconds=0.2)


def events_in_topic(brokers: str) -> list[dict[str, Any]]:
    """Return every event in the topic."""
    topic = "tests.outages.events"
    consumer = Consumer({"bootstrap.servers": brokers, "group.id": "check", "enable.auto.commit": False})
    parts = [TopicPartition(topic, partition, 0) for partition in range(2)]
    expected = sum(consumer.get_watermark_offsets(part, timeout=10)[1] for part in parts)
    consumer.assign(parts)
    events: list[dict[str, Any]] = []
    deadline = time.monotonic() + 60
    while len(events) < expected and time.monotonic() < deadline:
        for message in consumer.consume(1000, 1.0):
            assert message.error() is None
            events.append(json.loads(message.value()))
    consumer.close()
    assert expected == len(events)
    return events


def windows(runtime: Runtime) -> dict[tuple[str, str], tuple[int, int]]:
    """Return all windows as the API answers them: (events, sum of ids) by (group, start)."""
    rows: list[dict[str, Any]] = []
    parameters: dict[str, Any] = {"limit": 1000}
    while True:
        url = f"{runtime.url('api')}/v1/pipelines/outages/aggregates/by_k"
        body = httpx.get(url, params=parameters, timeout=30.0, trust_env=False).raise_for_status().json()
        rows += body["data"]
        if body["next_cursor"] is None:
            return {(row["k"], row["window_start"]): (row["events"], row["ids"]) for row in rows}
        parameters["cursor"] = body["next_cursor"]


def recomputed(events: list[dict[str, Any]]) -> dict[tuple[str, str], tuple[int, int]]:
    counts: Counter[tuple[str, str]] = Counter()
    sums: Counter[tuple[str, str]] = Counter()
    for event in events:
        start = time.strftime("%Y-%m-%dT%H:%M:00Z", time.gmtime(event["ts"] // 1000))
        counts[event["k"], start] += 1
        sums[event["k"], start] += event["id"]
    return {key: (counts[key], sums[key]) for key in counts}


def test_killed_servers_lose_no_acknowledged_event_and_health_reports_each_outage(
    own_servers: Any, server_folder: Path
) -> None:
    """Postgres, Redis and Kafka are killed in turn, and no event counts twice."""
    servers = own_servers(durable=True)
    with running(servers, server_folder) as runtime:
        everyone = dict.fromkeys(("processor", "ingest", "api"), "healthy")
        await_healths(runtime, everyone, seconds=30, why="the start")
        with Sender(runtime.url("ingest")) as sender:
            for name, expected in EXPECTED.items():
                before = len(sender.acknowledged)
                until(lambda: len(sender.acknowledged) > before, seconds=30, what="ingest acknowledges events")  # noqa: B023
                server = servers.handles[name]
                server.kill()
                await_healths(runtime, expected, seconds=REPORTED_WITHIN_SECONDS, why=f"the kill of {name}")
                server.start()
                await_healths(runtime, everyone, seconds=60, why=f"the restart of {name}")
        events = events_in_topic(servers.kafka)
        lost = sender.acknowledged - {event["id"] for event in events}
        assert set() == lost
        until(
            lambda: sum(n for n, _ in windows(runtime).values()) >= len(events),
            seconds=60,
            what="all events are counted",
        )
        assert recomputed(events) == windows(runtime)
        restarts = {name: state["restarts"] for name, state in runtime.status()["workloads"].items()}
        assert set(restarts.values()) == {0}, restarts
