"""Tests of a processor whose real Kafka, Postgres or Redis is killed or hangs while events are sent.

Each acknowledged event is counted once, and /health names the server.
"""

from __future__ import annotations

import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
from confluent_kafka import Producer

from bench import Bench, MakeBench
from running.hanging import BlackHole, frozen
from tidemill_contract.resource.spec import PipelineSpec
from tidemill_contract.runtime import AggregationRef, PipelineConfig

pytestmark = pytest.mark.integration

BASE = 1_700_000_000_000 // 60_000 * 60_000
QUICK = {
    "TIDEMILL_RESILIENCE__BREAKERS__DATABASE__OPEN_SECONDS": "2",
    "TIDEMILL_RESILIENCE__BREAKERS__KAFKA_CONSUMER__OPEN_SECONDS": "2",
    "TIDEMILL_RESILIENCE__BREAKERS__REDIS__OPEN_SECONDS": "2",
}

LONG_PAUSES = {
    f"TIDEMILL_RESILIENCE__BREAKERS__{name}__{key}_SECONDS": "60"
    for name in ("DATABASE", "KAFKA_CONSUMER", "REDIS")
    for key in ("OPEN", "FIRST_PAUSE")
}
"""With these pauses of the breakers, only checks in the background end an outage soon."""
REPORTED_SECONDS, HEALTHY_SECONDS = 30, 10


def config(name: str) -> PipelineConfig:
    spec = PipelineSpec.model_validate(
        {
            "source": {
                "topic": {"partitions": 2},
                "fields": [{"name": "ts", "type": "timestamp", "required": True}, {"name": "k", "type": "string"}],
                "eventTime": {"field": "ts", "idleTimeout": "2s"},
            },
            "aggregations": [
                {
                    "name": "by_k",
                    "groupBy": ["k"],
                    "window": {"type": "tumbling", "size": "1m"},
                    "metrics": [{"name": "n", "function": "count"}],
                }
            ],
            "processor": {"flushInterval": "100ms"},
        }
    )
    return PipelineConfig(
        namespace="tests", name=name, generation=1, spec=spec, aggregations=(AggregationRef(name="by_k"),)
    )


class Flow:
    """Sends events until the end of the context, and counts the acknowledged events."""

    def __init__(self, brokers: str, topic: str) -> None:
        self.acknowledged = 0
        self._topic = topic
        self._producer = Producer({
            "bootstrap.servers": brokers, "acks": "all", "enable.idempotence": True, "linger.ms": 5,
            "message.timeout.ms": 120_000,
        })  # fmt: skip
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Flow:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()
        assert self._producer.flush(120) == 0

    def _count(self, error: Any, message: Any) -> None:
        assert error is None, error
        self.acknowledged += 1

    def _run(self) -> None:
        number = 0
        while not self._stopping.is_set():
            for _ in range(10):
                value = json.dumps({"ts": BASE + number, "k": f"k{number % 7}"}).encode()
                self._producer.produce(self._topic, value, partition=number % 2, on_delivery=self._count)
                number += 1
            self._producer.poll(0.01)
            time.sleep(0.01)


def status(bench: Bench, name: str) -> tuple[str, str]:
    """Return the overall status and the status of a dependency in /health."""
    health = bench.health()
    statuses = (
        {d["name"]: d["status"] for d in health.get("dependencies", [])}
        if isinstance(health.get("dependencies"), list)
        else {n: d["status"] for n, d in health.get("dependencies", {}).items()}
    )
    return health.get("status", ""), statuses.get(name, "")


def counted(bench: Bench) -> int:
    return int(bench.query("SELECT coalesce(sum(_count), 0) FROM {s}.by_k_v1")[0][0])


@pytest.mark.matrix
@pytest.mark.parametrize(
    ("server", "meanwhile"), [("postgres", "unhealthy"), ("kafka", "unhealthy"), ("redis", "degraded")]
)
def test_events_are_counted_once_after_a_server_was_killed_and_restarted(
    server: str, meanwhile: str, own_servers: Callable[..., Any], make_bench: MakeBench
) -> None:
    servers = own_servers(durable=True)
    bench = make_bench(config(f"no-{server}"), at=servers, **QUICK)
    process = bench.start()
    with Flow(servers.kafka, bench.config.events_topic) as flow:
        bench.eventually(lambda: counted(bench) > 100, seconds=60, what="events are counted")
        if server == "redis":
            import redis

            client = redis.Redis.from_url(servers.redis)
            client.set(f"tidemill/tests/{bench.config.name}/listeners", "1")
        handle = servers.handles[server]
        handle.kill()
        bench.eventually(
            lambda: bench.health().get("status") == meanwhile, seconds=30, what=f"/health says {meanwhile}"
        )
        if server == "redis":
            before = counted(bench)
            bench.eventually(lambda: counted(bench) > before, what="events are counted without Redis")
        else:
            time.sleep(3)
        handle.start()
        bench.eventually(
            lambda: bench.health().get("status") == "healthy", seconds=60, what="the processor is healthy again"
        )
        before = counted(bench)
        bench.eventually(lambda: counted(bench) > before + 100, seconds=60, what="events are counted again")
    bench.eventually(
        lambda: counted(bench) >= flow.acknowledged, seconds=60, what="all acknowledged events are counted"
    )
    assert flow.acknowledged == counted(bench)
    assert process.poll() is None, "the processor was not restarted"


def asked(bench: Bench, path: str) -> tuple[int, str]:
    """Return the status code and the body that the processor answers to a path."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{bench.ports[-1]}{path}", timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


@contextmanager
def hanging_server(servers: Any, hang: str) -> Iterator[tuple[dict[str, str], Callable[[], Any]]]:
    """Yield settings of a processor, and a function that makes the server hang within a context.

    The server is frozen, or a proxy in front of Postgres drops all traffic.
    """
    server, _, how = hang.partition(" ")
    if how == "frozen":
        yield {}, lambda: frozen(servers.handles[server])
        return
    with BlackHole(servers.postgres.port) as hole:
        yield {"TIDEMILL_POSTGRES_PORT": str(hole.port)}, hole.open


@pytest.fixture(scope="module")
def lasting(own_servers: Callable[..., Any]) -> Any:
    """Start servers that tests may freeze. Each test wakes the servers again."""
    return own_servers(durable=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    "hang", ["postgres frozen", pytest.param("postgres in a black hole", marks=pytest.mark.matrix), "kafka frozen"]
)
def test_health_names_a_server_that_hangs_and_reports_the_lag(hang: str, lasting: Any, make_bench: MakeBench) -> None:
    """The processor stays live and ready. When the server answers again, the processor soon counts all events."""
    servers, server = lasting, hang.split()[0]
    other = {"postgres": "kafka", "kafka": "postgres"}[server]
    with ExitStack() as stack:
        settings, hanging = stack.enter_context(hanging_server(servers, hang))
        bench = make_bench(config(hang.replace(" ", "-")), at=servers, **LONG_PAUSES, **settings)
        process = bench.start()
        stack.callback(bench.stop)

        def metrics() -> str:
            return asked(bench, "/metrics")[1]

        with Flow(servers.kafka, bench.config.events_topic) as flow:
            bench.eventually(lambda: counted(bench) > 100, seconds=60, what="events are counted")
            bench.eventually(lambda: asked(bench, "/readyz")[0] == 200, what="the processor is ready")
            with hanging():
                bench.eventually(
                    lambda: status(bench, server) == ("unhealthy", "down"),
                    seconds=REPORTED_SECONDS,
                    what="/health names the server",
                )
                assert status(bench, other)[1] == "up", bench.health()
                if server == "postgres":
                    bench.eventually(lambda: (bench.health().get("lag") or 0) > 100, what="the lag grows")
                    bench.eventually(
                        lambda: 'tidemill_breaker_state{name="database"} 2' in metrics(), what="the breaker is open"
                    )
                else:
                    bench.eventually(lambda: bench.health().get("lag", 0) is None, what="the lag is unknown")
                    assert "tidemill_lag_events{" not in metrics()
                assert [asked(bench, path)[0] for path in ("/livez", "/readyz")] == [200, 200]
                assert status(bench, other)[1] == "up", bench.health()
            bench.eventually(
                lambda: bench.health().get("status") == "healthy",
                seconds=HEALTHY_SECONDS,
                what="the processor is healthy",
            )
            before = counted(bench)
            bench.eventually(lambda: counted(bench) > before + 100, seconds=60, what="events are counted")
        bench.eventually(
            lambda: counted(bench) >= flow.acknowledged, seconds=60, what="all acknowledged events are counted"
        )
        assert flow.acknowledged == counted(bench)
        assert process.poll() is None
