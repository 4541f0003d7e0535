"""Tests of the watch on progress: events that are not counted, silent servers, and recovery. Servers are in memory."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import pytest

from tidemill_operator.errors import Reason, TidemillError
from tidemill_operator.keys import Key
from tidemill_operator.observer.controller_check import ControllerCheck
from tidemill_operator.observer.progress import Progress, ProgressResult, ProgressWatch
from tidemill_operator.observer.write_check import WriteCheck
from waiting import eventually

AWAY = TidemillError(Reason.UNREACHABLE, "no broker answers")
KEY = Key("shop", "orders", "u")
SCHEMA, TOPIC = "shop__orders", "shop.orders.events"
STATUS = {"schema": SCHEMA, "topics": [{"name": TOPIC}], "conditions": []}


class Watch:
    """The watch of a pipeline, which gets a result every five seconds."""

    def __init__(self, document: Mapping[str, Any] | None = None) -> None:
        self.now, self.changes = 0.0, list[tuple[float, str]]()
        self.silent_seconds, self.asked = 0.0, 0
        self.refusal, self.probed = "", list[float]()
        self.progress = ProgressWatch(
            self._changed,
            controller_silence=self._controller_silence,
            write_refusal=self._write_refusal,
            clock=lambda: self.now,
        )
        self.progress.watch(KEY, document or {}, STATUS)

    def _changed(self, _: Key, error: TidemillError | None) -> None:
        self.changes.append((self.now, error.reason if error else ""))

    def _controller_silence(self, topic: str) -> float:
        assert topic == TOPIC
        self.asked += 1
        return self.silent_seconds

    def _write_refusal(self) -> str:
        self.probed.append(self.now)
        return self.refusal

    def update(self, *results: ProgressResult) -> list[tuple[float, str]]:
        """Update the watch with these results. Return the reported reasons with their times."""
        for result in results:
            self.progress.update(KEY, SCHEMA, TOPIC, result)
            self.now += 5.0
        return self.changes


def at(*pairs: tuple[int, int | None], confirmed: int = 0) -> dict[int, Progress]:
    """Return the progress of partitions from their lags and positions."""
    return {number: Progress(lag, (offset, confirmed)) for number, (lag, offset) in enumerate(pairs)}


def test_a_pipeline_without_waiting_events_is_not_reported() -> None:
    assert Watch().update(*[at((0, 7), (0, None))] * 20) == []


def test_events_that_wait_for_twenty_seconds_are_reported_until_they_move() -> None:
    watch = Watch()
    assert watch.update(at((0, 7)), *[at((3 + n, 7)) for n in range(10)]) == [(25.0, "EventsNotMoving")]
    error = watch.progress.error(KEY)
    assert str(error) == (
        "events wait in the topic (partitions 0) and none is counted; check the processors' pods;"
        " a pod's /health names what the processor waits for"
    )
    assert watch.update(at((5, 15))) == [(25.0, "EventsNotMoving"), (55.0, "")]
    assert watch.progress.errors() == {}


def test_a_postgres_that_stores_nothing_is_reported_at_once() -> None:
    watch = Watch()
    watch.refusal = "could not extend file: No space left on device"
    assert watch.update(at((3, 7)), *[at((3 + n, 7)) for n in range(10)]) == [(5.0, "EventsNotMoving")]
    assert str(watch.progress.error(KEY)) == (
        "events wait in the topic and none is counted, because Postgres refuses to write (could not extend file: No"
        " space left on device); give Postgres more disk space, or check why it is a standby"
    )
    assert watch.probed == [5.0]
    watch.refusal = ""
    assert watch.update(at((9, 7)), at((5, 15)))[1:] == [(60.0, "")]


def test_a_write_to_postgres_is_tried_only_when_commits_are_overdue() -> None:
    watch = Watch()
    watch.update(*[at((9, 7 + n)) for n in range(20)], *[at((0, 26))] * 5)
    assert watch.probed == []
    rare = Watch({"spec": {"processor": {"flushInterval": "10s"}}})
    rare.update(*[at((9, 7))] * 5)
    assert rare.probed == [10.0, 15.0, 20.0]


MOVING: list[tuple[list[ProgressResult], str]] = [
    ([at((9, 7 + n)) for n in range(20)], "a backlog that is worked off"),
    ([at((9, 7), (9, n)) for n in range(20)], "one waiting partition beside a moving one"),
    ([at((n % 2, 7 + n // 2)) for n in range(20)], "single events"),
    ([at((1, 7), confirmed=n) for n in range(20)], "only transaction markers, and a confirmed end"),
    ([at((9, 7), (9, 7)), {0: Progress(9, (8, 0))}] * 8, "a broker is unreachable, and partitions of others move"),
]


@pytest.mark.parametrize(("results", "case"), MOVING, ids=[case for _, case in MOVING])
def test_a_pipeline_that_moves_is_not_reported(results: list[ProgressResult], case: str) -> None:
    assert Watch().update(*results) == [], case


def test_a_long_flush_interval_delays_the_report() -> None:
    watch = Watch({"spec": {"processor": {"flushInterval": "20s"}}})
    assert watch.update(*[at((9, 7))] * 14) == [(60.0, "EventsNotMoving")]


def test_silent_leaders_are_reported_if_no_other_partition_moves() -> None:
    """For example, one of three brokers is unreachable, and other partitions get no events."""
    watch = Watch()
    before, during = at((0, 7), (0, 7), (0, 7)), at((0, 7))
    assert watch.update(before, during, during, before) == []
    assert watch.update(*[during] * 4) == [(30.0, "Unreachable")]
    assert str(watch.progress.error(KEY)) == (
        "leaders of partitions 1, 2 do not answer, and no event of other partitions is counted;"
        " check that Kafka's brokers run"
    )
    assert watch.update(before)[1:] == [(40.0, "")]


def test_silent_leaders_are_not_reported_while_others_move() -> None:
    assert Watch().update(at((0, 7), (0, 7)), *[at((0, 7 + n)) for n in range(20)]) == []


def test_silent_controllers_are_reported_if_no_event_is_counted() -> None:
    """The leaders answer, but may not acknowledge records, so no event waits."""
    watch = Watch()
    watch.silent_seconds = 10.0
    assert watch.update(*[at((0, 7), confirmed=n) for n in range(6)]) == [(15.0, "Unreachable")]
    assert str(watch.progress.error(KEY)) == (
        "Kafka's controllers do not answer, and no event is counted: brokers possibly refuse events;"
        " check that a majority of the controllers runs"
    )
    assert watch.update(at((0, 9)))[1:] == [(30.0, "")]


def test_controllers_are_not_asked_while_events_are_counted() -> None:
    watch = Watch()
    watch.silent_seconds = 60.0
    assert (watch.update(*[at((0, 7 + n)) for n in range(20)]), watch.asked) == ([], 0)
    watch.silent_seconds = 5.0
    assert watch.update(*[at((0, 27))] * 20) == []
    assert watch.asked > 0


def test_controllers_are_asked_in_a_thread_at_intervals() -> None:
    now, questions, answers, gate = [0.0], list[float](), [False], threading.Event()

    def ask(topic: str) -> bool:
        questions.append(now[0])
        gate.wait(10)
        return answers[0]

    def silent_after_question() -> float:
        """Return the silent seconds after the last question was answered."""
        silent = controllers.silent_seconds(TOPIC)
        gate.set()
        for thread in [thread for thread in threading.enumerate() if thread.name == "controllers"]:
            thread.join(10)
        return silent

    controllers = ControllerCheck(ask, clock=lambda: now[0])
    assert (controllers.silent_seconds(TOPIC), controllers.silent_seconds(TOPIC)) == (0.0, 0.0)
    assert silent_after_question() == 0.0
    for now[0] in (5.0, 10.0):
        assert silent_after_question() == now[0]
    answers[0] = True
    assert (silent_after_question(), silent_after_question()) == (10.0, 0.0)
    for now[0] in (15.0, 20.0, 25.0):
        assert silent_after_question() == 0.0
    assert questions == [0.0, 5.0, 10.0, 10.0, 25.0]


def test_an_observer_without_answers_becomes_an_outage_after_ten_seconds() -> None:
    """Five seconds without an answer are no outage. The next answer ends the outage."""
    assert Watch().update(at((0, 7)), AWAY, at((0, 7)), AWAY) == []
    watch = Watch()
    assert watch.update(at((0, 7)), AWAY, AWAY, AWAY) == [(10.0, "Unreachable")]
    assert watch.update(at((0, 9))) == [(10.0, "Unreachable"), (20.0, "")]


def test_a_missing_schema_is_not_reported_here() -> None:
    watch = Watch()
    assert (watch.update(*[{}] * 10), watch.progress.error(KEY)) == ([], None)


def test_the_progress_of_a_former_topic_is_ignored() -> None:
    watch = Watch()
    watch.progress.watch(KEY, {}, {**STATUS, "topics": [{"name": "other"}]})
    assert watch.update(*[at((9, 7))] * 10) == []


def test_an_observer_that_does_not_return_is_an_outage() -> None:
    watch = Watch()
    watch.update(at((0, 7)))
    watch.now += 30.0
    error = watch.progress.error(KEY)
    assert error is not None
    assert error.reason == Reason.UNREACHABLE


@pytest.mark.parametrize(
    "status",
    [{}, {**STATUS, "conditions": [{"type": "Suspended", "status": "True"}]}, {**STATUS, "topics": []}],
    ids=["no status", "suspended", "no topic yet"],
)
def test_a_pipeline_that_does_not_count_is_not_watched(status: dict[str, Any]) -> None:
    watch = Watch()
    watch.update(*[at((9, 7))] * 6)
    watch.progress.watch(KEY, {}, status)
    assert watch.progress.error(KEY) is None
    watch.update(at((9, 7)))
    assert watch.progress.errors() == {}


def test_a_slow_check_of_writes_is_made_once_and_not_waited_for() -> None:
    gate, questions = threading.Event(), list[int]()

    def ask() -> str:
        questions.append(1)
        gate.wait(10)
        return "the disk is full"

    writes = WriteCheck(ask)
    assert [writes.refusal(), len(questions)] == ["", 1]
    gate.set()
    assert eventually(writes.refusal, seconds=5, what="the refusal is known") == "the disk is full"
