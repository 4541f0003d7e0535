"""Tests of `ServerChecks`: which partial outages of Kafka a processor reports."""

from __future__ import annotations

from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException

from tidemill_chassis.resilience.guard import Guards
from tidemill_processor import server_checks as module
from tidemill_processor.server_checks import CheckedServers, ServerChecks


class Kafka:
    """A Kafka with three partitions, and a clock."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.reported = 100.0, {0: 7, 1: 7, 2: 7}
        self.lost_at: float | None = None
        monkeypatch.setattr(module.time, "monotonic", lambda: self.now)
        nothing: Any = SimpleNamespace(
            assignment=SimpleNamespace(backlog=SimpleNamespace(measure=lambda *_: None, expire=lambda: None)),
            kafka=SimpleNamespace(record_answer=lambda _: None),
        )
        self.checks = ServerChecks(nothing, None, CheckedServers(self, nothing), Guards(*[nothing] * 4))  # type: ignore[arg-type]

    def end_offsets(self) -> dict[int, int]:
        if not self.reported:
            raise KafkaException(KafkaError(KafkaError._TIMED_OUT))
        return dict(self.reported)

    def refresh_login(self) -> None:
        """Accept the call. The login does not change."""

    def missing_ends(self, ends: dict[int, int]) -> frozenset[int]:
        return frozenset({0, 1, 2}) - ends.keys()

    def after(self, seconds: float) -> str:
        """Check every second for this time, and return the last report."""
        for _ in range(int(seconds)):
            self.now += 1.0
            with suppress(KafkaException):
                self.checks._check_kafka()
        return self.checks.kafka_partial_outage


@pytest.fixture
def kafka(monkeypatch: pytest.MonkeyPatch) -> Kafka:
    return Kafka(monkeypatch)


def test_silent_leaders_are_reported_after_the_time_of_an_election(kafka: Kafka) -> None:
    """The other brokers answer."""
    kafka.reported = {0: 7}
    assert kafka.after(15) == ""
    assert kafka.after(1) == "leaders of partitions 1, 2 do not answer"
    kafka.reported = {0: 7, 1: 7, 2: 7}
    assert kafka.after(1) == ""


def test_the_time_of_silent_leaders_includes_the_time_when_no_broker_answered(kafka: Kafka) -> None:
    kafka.reported = {}
    assert kafka.after(10) == ""
    kafka.reported = {0: 7}
    assert kafka.after(6) == "leaders of partitions 1, 2 do not answer"


def test_leaders_that_are_silent_for_a_short_time_are_not_reported(kafka: Kafka) -> None:
    for _ in range(5):
        kafka.reported = {0: 7}
        assert kafka.after(10) == ""
        kafka.reported = {0: 7, 1: 7, 2: 7}
        assert kafka.after(1) == ""


def test_a_silent_coordinator_is_reported(kafka: Kafka) -> None:
    kafka.lost_at = kafka.now
    assert kafka.after(14) == ""
    assert kafka.after(1) == "the coordinator of the consumer group does not answer"
    kafka.lost_at = None
    assert kafka.after(1) == ""
