"""Tests of the servers that `tidemill up` starts: Kafka, Postgres and Redis as real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest
import redis
from confluent_kafka import Consumer, Producer

from kafka_admin import KafkaAdmin
from tidemill_operator.laptop.servers import Servers, start_servers
from tidemill_operator.processes.child import start_time
from waiting import eventually

pytestmark = pytest.mark.integration


def produce(brokers: str, topic: str, value: bytes) -> None:
    errors: list[object] = []
    producer = Producer({"bootstrap.servers": brokers, "acks": "all"})
    producer.produce(topic, value, on_delivery=lambda error, _: errors.append(error) if error else None)
    assert producer.flush(30) == 0
    assert errors == []


def first_value(brokers: str, topic: str) -> bytes | None:
    consumer = Consumer({"bootstrap.servers": brokers, "group.id": "reader", "auto.offset.reset": "earliest"})
    consumer.subscribe([topic])
    try:
        message = consumer.poll(30)
        return None if message is None or message.error() else message.value()
    finally:
        consumer.close()


def test_kafka_postgres_and_redis_serve_their_clients(servers: Servers) -> None:
    with psycopg.connect(servers.postgres.url) as connection:
        assert connection.execute("SHOW timezone").fetchone() == ("UTC",)
    client = redis.Redis.from_url(servers.redis)
    assert client.ping() is True
    client.close()
    KafkaAdmin(servers.kafka).create("servers.smoke", 2)
    produce(servers.kafka, "servers.smoke", b"one")
    assert first_value(servers.kafka, "servers.smoke") == b"one"


@pytest.mark.slow
def test_restarted_servers_have_their_ports_and_data_after_sigkill(own_servers: Callable[..., Servers]) -> None:
    servers = own_servers(durable=True)
    KafkaAdmin(servers.kafka).create("kept")
    produce(servers.kafka, "kept", b"acknowledged")
    with psycopg.connect(servers.postgres.url, autocommit=True) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 1 AS one")
    before = {name: (server.pid, server.port) for name, server in servers.handles.items()}

    for server in servers.handles.values():
        server.kill()
    assert {name: server.running for name, server in servers.handles.items()} == dict.fromkeys(servers.handles, False)
    for server in servers.handles.values():
        server.start()

    after = {name: (server.pid, server.port) for name, server in servers.handles.items()}
    assert {name: port for name, (_, port) in after.items()} == {name: port for name, (_, port) in before.items()}
    assert all(after[name][0] != before[name][0] for name in before)
    assert first_value(servers.kafka, "kept") == b"acknowledged"
    with psycopg.connect(servers.postgres.url) as connection:
        assert connection.execute("SELECT one FROM kept").fetchone() == (1,)


def test_a_second_start_uses_the_same_addresses_and_password(server_folder: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("TIDEMILL_POSTGRES_URL", raising=False)
        patch.delenv("TIDEMILL_REDIS_URL", raising=False)
        first = start_servers(server_folder, needs=("postgres", "redis"), durable=False)
        first.stop()
        second = start_servers(server_folder, needs=("postgres", "redis"), durable=False)
        second.stop()
    assert (second.postgres, second.redis) == (first.postgres, first.redis)


def test_servers_end_when_their_parent_is_killed(server_folder: Path) -> None:
    """Servers keep running when only a thread of their parent ends."""
    script = textwrap.dedent("""
        import sys, time
        from pathlib import Path
        from tidemill_operator.laptop.servers import start_servers
        ENVIRON = {"PATH": "/usr/bin:/bin"}
        servers = start_servers(Path(sys.argv[1]), environ=ENVIRON, needs=("postgres", "redis"), durable=False)
        print(*[server.pid for server in servers.handles.values()], flush=True)
        time.sleep(120)
    """)
    parent = subprocess.Popen(
        [sys.executable, "-c", script, str(server_folder)], stdout=subprocess.PIPE, text=True, env=dict(os.environ)
    )
    try:
        assert parent.stdout is not None
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(pids) == 2
        assert all(start_time(pid) for pid in pids)
        time.sleep(0.3)  # longer than the threads of start_servers live
        assert all(start_time(pid) for pid in pids)
        parent.send_signal(signal.SIGKILL)
        eventually(lambda: not any(start_time(pid) for pid in pids), seconds=10, what="servers end with their parent")
    finally:
        parent.kill()
        parent.wait()
        if parent.stdout is not None:
            parent.stdout.close()


@pytest.mark.matrix
@pytest.mark.slow
def test_three_brokers_keep_acknowledged_records_when_one_is_killed(own_servers: Callable[..., Servers]) -> None:
    """The topic has replication factor 3 and needs two replicas in sync."""
    servers = own_servers(needs=("kafka",), brokers=3)
    KafkaAdmin(servers.kafka).create("replicated", replicas=3)
    produce(servers.kafka, "replicated", b"safe")
    servers.handles["kafka"].kill()
    produce(servers.kafka, "replicated", b"after")
    assert first_value(servers.kafka, "replicated") == b"safe"
