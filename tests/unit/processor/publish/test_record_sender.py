"""Tests of `RecordSender`: a producer that does not deliver results is replaced."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException

from tidemill_processor.publish.producer import RENEW_SECONDS, PublishFailed, RecordSender

TOO_LARGE, PURGED = KafkaError(KafkaError.MSG_SIZE_TOO_LARGE), KafkaError(KafkaError._PURGE_QUEUE)
REFUSED, FATAL = KafkaError(KafkaError.TOPIC_AUTHORIZATION_FAILED), KafkaError(KafkaError._FATAL, "fenced")


class Message:
    """The message of a delivery report."""

    def topic(self) -> str:
        return "t"

    def key(self) -> bytes:
        return b"k"

    def value(self) -> bytes:
        return b"v"


class Client:
    """A producer whose records have the outcome that a test sets. With None, no report arrives."""

    def __init__(self) -> None:
        self.outcome: KafkaError | str | None = "acknowledged"
        self.raises: KafkaError | None = None
        self.waiting: list[Callable[..., None]] = []

    def produce(self, *_: Any, on_delivery: Callable[..., None], **__: Any) -> None:
        if self.raises is not None:
            raise KafkaException(self.raises)
        self.waiting.append(on_delivery)

    def flush(self, _: float) -> int:
        if self.outcome is None:
            return len(self.waiting)
        waiting, self.waiting = self.waiting, []
        for callback in waiting if isinstance(self.outcome, KafkaError) else ():
            callback(self.outcome, Message())
        return 0

    def purge(self, *, in_flight: bool) -> None:
        """Accept the call. Reports arrive at a later flush."""

    def poll(self, _: float) -> int:
        return 0


class World:
    """A record sender, the producers that it created, and a clock."""

    def __init__(self) -> None:
        self.now, self.clients = 0.0, list[Client]()
        self.sender = RecordSender(self._make, clock=lambda: self.now)

    def _make(self) -> Any:
        self.clients.append(Client())
        return self.clients[-1]

    def send(self) -> None:
        """Send a record and wait for its report."""
        self.sender.send("t", b"k", b"v", {"id": "1"})
        assert self.sender.wait_for_acks() == []


@pytest.mark.parametrize("outcome", [None, REFUSED])
def test_a_producer_that_does_not_deliver_is_replaced(outcome: KafkaError | None) -> None:
    """A producer may use an outdated leader for as long as it lives."""
    world = World()
    world.send()
    world.now, world.clients[0].outcome = RENEW_SECONDS, outcome
    with pytest.raises(PublishFailed):
        world.send()
    world.send()
    assert [len(client.waiting) for client in world.clients] == [outcome is None, 0]


def test_a_producer_that_accepts_no_records_is_replaced() -> None:
    world = World()
    world.now, world.clients[0].raises = RENEW_SECONDS, KafkaError(KafkaError._UNKNOWN_TOPIC)
    with pytest.raises(PublishFailed):
        world.send()
    world.send()
    assert len(world.clients) == 2


def test_a_failing_producer_is_kept_for_a_while_unless_its_error_is_fatal() -> None:
    """While Kafka is unavailable, many tasks fail in a row."""
    world = World()
    world.clients[0].outcome = REFUSED
    for world.now in (0.0, 1.0, RENEW_SECONDS - 0.1):
        with pytest.raises(PublishFailed):
            world.send()
    assert len(world.clients) == 1
    world.clients[0].raises = FATAL
    with pytest.raises(PublishFailed):
        world.send()
    world.send()
    assert len(world.clients) == 2


def test_a_producer_is_kept_if_records_are_too_large_or_purged() -> None:
    world = World()
    world.now, world.clients[0].outcome = RENEW_SECONDS, TOO_LARGE
    world.sender.send("t", b"k", b"v", {"id": "1"})
    assert [refused.value for refused in world.sender.wait_for_acks()] == [b"v"]
    world.clients[0].outcome = PURGED
    world.send()
    assert len(world.clients) == 1
