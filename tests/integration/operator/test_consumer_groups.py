"""Test of the description of a consumer group by the operator, while a real Kafka is killed and started again."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from confluent_kafka import Consumer

from kafka_admin import KafkaAdmin
from tidemill_operator.actuators.kafka.groups import Group, describe_group
from tidemill_operator.laptop.servers import Servers
from waiting import eventually

pytestmark = pytest.mark.integration
# A program that describes a group again and again, with a short timeout.
DESCRIBE_GROUP = """
import sys, threading, time
from tidemill_operator.actuators.kafka.groups import describe_group
from tidemill_operator.errors import TidemillError

while True:
    try:
        print(describe_group({"bootstrap.servers": sys.argv[1]}, sys.argv[2], 1.0), flush=True)
    except TidemillError as error:
        running = [thread.name for thread in threading.enumerate() if thread.name.startswith("kafka-io")]
        print(error.reason, error, running, flush=True)
    time.sleep(0.1)
"""


@contextmanager
def describing(brokers: str, group: str, file: Path) -> Iterator[Callable[[], list[str]]]:
    """Describe a group in another process, and return a function that reads its lines.

    A fault in the client can end its process, so the test uses another process.
    """
    with file.open("w") as out:
        process = subprocess.Popen([sys.executable, "-c", DESCRIBE_GROUP, brokers, group], stdout=out)
    try:
        yield lambda: file.read_text().splitlines()
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()


@contextmanager
def member(brokers: str, group: str, topic: str) -> Iterator[None]:
    """Start a consumer that stays in its group until the block ends."""
    stopping = threading.Event()
    consumer = Consumer({"bootstrap.servers": brokers, "group.id": group, "log_level": 0})
    consumer.subscribe([topic])

    def stay() -> None:
        while not stopping.is_set():
            consumer.poll(0.1)
        consumer.close()

    thread = threading.Thread(target=stay)
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        thread.join()


def test_a_group_is_described_again_after_an_outage_of_kafka(
    own_servers: Callable[..., Servers], tmp_path: Path
) -> None:
    """Requests during the outage leave no thread, and do not end the process later."""
    servers = own_servers(needs=("kafka",))
    KafkaAdmin(servers.kafka).create("read", 2)
    alone = str(Group(1, rebalancing=False))
    unreachable = (
        f"describing consumer group readers: Kafka at {servers.kafka} does not answer"
        f" (KafkaTimeoutError: Unable to bootstrap from ['{servers.kafka}']) []"
    )
    with member(servers.kafka, "readers", "read"), describing(servers.kafka, "readers", tmp_path / "lines") as lines:
        eventually(lambda: alone in lines(), seconds=60, what="the group has its member")
        servers.handles["kafka"].kill()
        eventually(
            lambda: sum(line.endswith(unreachable) for line in lines()) >= 3, seconds=60, what="Kafka does not answer"
        )
        servers.handles["kafka"].start()
        since = len(lines())
        eventually(lambda: lines()[since:].count(alone) >= 3, seconds=60, what="the group has its member again")
        assert describe_group({"bootstrap.servers": servers.kafka}, "nobody", 10.0) == Group(0, rebalancing=False)
