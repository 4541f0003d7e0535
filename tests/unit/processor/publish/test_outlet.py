"""Which producer results go to: another one, if the one of now does not deliver."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException

from tidemill_processor.publish.producer import RENEW_SECONDS, Outlet, PublishFailed

TOO_LARGE, PURGED = KafkaError(KafkaError.MSG_SIZE_TOO_LARGE), KafkaError(KafkaError._PURGE_QUEUE)
REFUSED, FATAL = KafkaError(KafkaError.TOPIC_AUTHORIZATION_FAILED), KafkaError(KafkaError._FATAL, "fenced")


class Message:
    """What a report is about."""

    def topic(self) -> str:
        return "t"

    def key(self) -> bytes:
        return b"k"

    def value(self) -> bytes:
        return b"v"


class Client:
    """A producer of which a test says what becomes of its records; None: it is not known yet."""

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
        for told in waiting if isinstance(self.outcome, KafkaError) else ():
            told(self.outcome, Message())
        return 0

    def purge(self, *, in_flight: bool) -> None:
        """They are told of later."""

    def poll(self, _: float) -> int:
        return 0


class World:
    """An outlet, the producers that it has made, and the time."""

    def __init__(self) -> None:
        self.now, self.made = 0.0, list[Client]()
        self.outlet = Outlet(self._make, clock=lambda: self.now)

    def _make(self) -> Any:
        self.made.append(Client())
        return self.made[-1]

    def sends(self) -> None:
        """One record."""
        self.outlet.send("t", b"k", b"v", {"id": "1"})
        assert self.outlet.settle() == []


@pytest.mark.parametrize("outcome", [None, REFUSED])
def test_a_producer_that_does_not_deliver_is_replaced(outcome: KafkaError | None) -> None:
    """It may believe for as long as it lives in leaders that are none."""
    world = World()
    world.sends()
    world.now, world.made[0].outcome = RENEW_SECONDS, outcome
    with pytest.raises(PublishFailed):
        world.sends()
    world.sends()
    assert [len(client.waiting) for client in world.made] == [outcome is None, 0]


def test_one_that_takes_no_records_is_replaced() -> None:
    world = World()
    world.now, world.made[0].raises = RENEW_SECONDS, KafkaError(KafkaError._UNKNOWN_TOPIC)
    with pytest.raises(PublishFailed):
        world.sends()
    world.sends()
    assert len(world.made) == 2


def test_a_producer_is_tried_for_a_while_unless_it_cannot_go_on() -> None:
    """While Kafka is away many duties fail, one after the other."""
    world = World()
    world.made[0].outcome = REFUSED
    for world.now in (0.0, 1.0, RENEW_SECONDS - 0.1):
        with pytest.raises(PublishFailed):
            world.sends()
    assert len(world.made) == 1
    world.made[0].raises = FATAL
    with pytest.raises(PublishFailed):
        world.sends()
    world.sends()
    assert len(world.made) == 2


def test_what_is_too_large_or_was_given_up_says_nothing_against_a_producer() -> None:
    world = World()
    world.now, world.made[0].outcome = RENEW_SECONDS, TOO_LARGE
    world.outlet.send("t", b"k", b"v", {"id": "1"})
    assert [refused.value for refused in world.outlet.settle()] == [b"v"]
    world.made[0].outcome = PURGED
    world.sends()
    assert len(world.made) == 1
