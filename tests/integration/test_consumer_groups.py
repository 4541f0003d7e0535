"""What the operator learns of a consumer group, also while Kafka goes and comes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from confluent_kafka import Consumer
from confluent_kafka.admin import AdminClient, NewTopic

from tidemill_operator.actuators.kafka_groups import Group, describe_group
from tidemill_operator.errors import Reason, TidemillError
from tidemill_operator.servers import Servers

# kafka-python leaves the socket of a connection that was refused to the garbage collector.
pytestmark = [pytest.mark.integration, pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")]
GIVEN_UP_AFTER_SECONDS = 1.0


@contextmanager
def member(brokers: str, group: str, topic: str) -> Iterator[Consumer]:
    consumer = Consumer({"bootstrap.servers": brokers, "group.id": group, "log_level": 0})
    consumer.subscribe([topic])
    yield consumer
    consumer.close()


def test_a_group_is_described_before_and_after_kafka_was_away(
    own_servers: Callable[..., Servers], eventually: Callable[..., Any]
) -> None:
    """Requests that were given up meanwhile leave nothing behind that could end the process."""
    servers = own_servers(needs=("kafka",))
    config = {"bootstrap.servers": servers.kafka, "log_level": 0}

    failures: list[TidemillError] = []

    def described(group: str) -> Group | None:
        try:
            return describe_group(config, group, GIVEN_UP_AFTER_SECONDS)
        except TidemillError as error:
            failures.append(error)
            return None

    def alone() -> bool:
        consumer.poll(0.1)
        return described("readers") == Group(1, moving=False)

    admin = AdminClient(config)
    admin.create_topics([NewTopic("read", 2, 1)])["read"].result(30)
    eventually(lambda: described("nobody") == Group(0, moving=False), what="a group without members is told")
    with member(servers.kafka, "readers", "read") as consumer:
        eventually(alone, what="its member is told")
        servers.handles["kafka"].kill()
        deadline = time.monotonic() + 4 * GIVEN_UP_AFTER_SECONDS
        asked = 0
        while asked < 3 or time.monotonic() < deadline:
            assert described("readers") is None
            asked += 1
        servers.handles["kafka"].start()
        eventually(alone, seconds=60, what="its member is told again")
    assert [thread for thread in threading.enumerate() if thread.name.startswith("kafka-io")] == []
    assert {error.reason for error in failures} == {Reason.UNREACHABLE}
    assert all("describing consumer group " in str(error) for error in failures)
