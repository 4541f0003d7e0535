"""What the operator learns of a consumer group, also while Kafka goes and comes."""

from __future__ import annotations

import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from confluent_kafka import Consumer
from confluent_kafka.admin import AdminClient, NewTopic

from tidemill_operator.actuators.kafka_groups import Group, describe_group
from tidemill_operator.servers import Servers

pytestmark = pytest.mark.integration
# Asks once a moment until it is stopped, and gives up soon.
ASKING = """
import sys, threading, time
from tidemill_operator.actuators.kafka_groups import describe_group
from tidemill_operator.errors import TidemillError

while True:
    try:
        print(describe_group({"bootstrap.servers": sys.argv[1]}, sys.argv[2], 1.0), flush=True)
    except TidemillError as error:
        running = [thread.name for thread in threading.enumerate() if thread.name.startswith("kafka-io")]
        print(error.reason, error, running, flush=True)
    time.sleep(0.1)
"""


class Asking:
    """A process of its own, because what could go wrong would end it."""

    def __init__(self, brokers: str, group: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", ASKING, brokers, group], stdout=subprocess.PIPE, text=True
        )
        self._lines: queue.Queue[str] = queue.Queue()
        self._thread = threading.Thread(target=self._read)

    def __enter__(self) -> Asking:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        self._thread.join()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                self._lines.put(line.strip())

    def until(self, told: str, times: int = 1) -> None:
        """Read on until it was told so often."""
        while times:
            times -= told in self._lines.get(timeout=60.0)


@contextmanager
def member(brokers: str, group: str, topic: str) -> Iterator[None]:
    """A consumer that stays in its group."""
    stopping = threading.Event()
    consumer = Consumer({"bootstrap.servers": brokers, "group.id": group, "log_level": 0})
    consumer.subscribe([topic])

    def stay() -> None:
        while not stopping.is_set():
            consumer.poll(0.1)
        consumer.close()

    thread = threading.Thread(target=stay)
    thread.start()
    yield
    stopping.set()
    thread.join()


def test_a_group_is_described_before_and_after_kafka_was_away(own_servers: Callable[..., Servers]) -> None:
    """Requests that were given up meanwhile leave nothing behind: no thread, nothing that ends the process later."""
    servers = own_servers(needs=("kafka",))
    admin = AdminClient({"bootstrap.servers": servers.kafka, "log_level": 0})
    admin.create_topics([NewTopic("read", 2, 1)])["read"].result(30)
    alone = str(Group(1, moving=False))
    with member(servers.kafka, "readers", "read"), Asking(servers.kafka, "readers") as asking:
        asking.until(alone)
        servers.handles["kafka"].kill()
        asking.until("describing consumer group readers: Kafka")
        asking.until(f"does not answer (KafkaTimeoutError: Unable to bootstrap from ['{servers.kafka}']) []", times=3)
        servers.handles["kafka"].start()
        asking.until(alone, times=3)
        assert asking.process.poll() is None
        assert describe_group({"bootstrap.servers": servers.kafka}, "nobody", 10.0) == Group(0, moving=False)
