"""Records and their delivery reports: who failed, what the breaker hears, what is refused before anything is sent."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException
from hypothesis import given
from hypothesis import strategies as st

from tidemill_chassis.resilience.breaker import BreakerOpen
from tidemill_chassis.resilience.config import ResilienceConfig
from tidemill_chassis.resilience.guard import Deadline, Guard
from tidemill_chassis.web.problems import Problem
from tidemill_contract.runtime import WorkloadSettings
from tidemill_ingest.kafka.delivery import begin, finish
from tidemill_ingest.kafka.outcomes import Delivery, Pending
from tidemill_ingest.kafka.producers import QUEUE_MESSAGES
from tidemill_ingest.kafka.queue import QueueFullError, TopicFullError
from tidemill_ingest.kafka.sink import LATELY_SECONDS, KafkaDownError, Sink
from tidemill_ingest.kafka.watch import FAILURES, PAUSE_SECONDS, REPLACE_SECONDS, STUCK_SECONDS, Watch
from tidemill_ingest.records import Records
from waiting import eventually_async

NOWHERE = WorkloadSettings(kafka_brokers="127.0.0.1:1")
TIMED_OUT = KafkaError(KafkaError._MSG_TIMED_OUT)


def run(scenario: Coroutine[Any, Any, None]) -> None:
    asyncio.run(scenario)


def records(*values: bytes) -> Records:
    return Records(list(values), None, {}, {})


def producer_guard(*, clock: Callable[[], float] = time.monotonic, **settings: float) -> Guard:
    breakers = {"kafka_producer": {"failures": 5, "open_seconds": 60.0, **settings}}
    timeouts = {"kafka_publish_seconds": 1.0}
    return (
        ResilienceConfig.model_validate({"breakers": breakers, "timeouts": timeouts}).guards(clock=clock).kafka_producer
    )


class Message:
    """A delivery report's message."""

    def __init__(self, value: bytes, partition: int = 0, offset: int = 0) -> None:
        self._value, self._at = value, (partition, offset)

    def value(self) -> bytes:
        return self._value

    def partition(self) -> int:
        return self._at[0]

    def offset(self) -> int:
        return self._at[1]


@given(
    st.lists(st.tuples(st.sampled_from([b"a", b"b", b"c"]), st.booleans()), min_size=1, max_size=12),
    st.randoms(use_true_random=False),
)
def test_as_many_records_fail_as_reports_say_in_whatever_order(outcomes: list[tuple[bytes, bool]], rnd: Any) -> None:
    """Equal values may be taken for each other; different ones never."""

    async def scenario() -> None:
        ends: list[Delivery] = []
        values = [value for value, _ in outcomes]
        pending = Pending(records(*values), ends.append)
        shuffled = list(outcomes)
        rnd.shuffle(shuffled)
        for value, ok in shuffled:
            assert ends == []
            pending.report(None if ok else TIMED_OUT, Message(value))
        delivery = await pending.future
        assert ends == [delivery]
        failed = sorted(values[index] for index in delivery.failed)
        assert failed == sorted(value for value, ok in outcomes if not ok)

    run(scenario())


def test_records_that_were_never_queued_count_and_places_are_kept() -> None:
    """Every record is accounted for before the future is done."""

    async def scenario() -> None:
        pending = Pending(records(b"same", b"same", b"same"), lambda _: None)
        pending.unsent(2, KafkaError(KafkaError._QUEUE_FULL))
        pending.reporter(0)(None, Message(b"same", 3, 7))
        assert not pending.future.done()
        pending.reporter(1)(TIMED_OUT, Message(b"same"))
        delivery = await pending.future
        assert delivery.places == {0: (3, 7)}
        assert {index: error.name() for index, error in delivery.failed.items()} == {
            1: "_MSG_TIMED_OUT",
            2: "_QUEUE_FULL",
        }

    run(scenario())


def test_a_request_that_was_given_up_still_settles() -> None:
    """Reports after a cancelled wait reach the breaker's ticket and hurt nobody."""

    async def scenario() -> None:
        ends: list[Delivery] = []
        pending = Pending(records(b"a"), ends.append)
        pending.future.cancel()
        pending.report(TIMED_OUT, Message(b"a"))
        assert list(ends[0].failed) == [0]

    run(scenario())


def test_failed_requests_open_the_breaker_and_then_nothing_is_sent() -> None:
    """With no Kafka: each request's records time out, rows and not exceptions; after five the breaker is open."""

    async def scenario() -> None:
        guard = producer_guard(clock=lambda: 0.0)
        sink = Sink(NOWHERE, guard, request_seconds=30)
        sink.start()
        sent = [sink.submit("t", records(b"1", b"2"), places=False) for _ in range(5)]
        for pending in sent:
            delivery = await finish(sink, "t", records(b"1", b"2"), pending, places=False, deadline=Deadline.after(20))
            assert {error.name() for error in delivery.failed.values()} == {"_MSG_TIMED_OUT"}
            assert sorted(delivery.failed) == [0, 1]
        assert guard.state == "open"
        with pytest.raises(BreakerOpen):
            sink.submit("t", records(b"3"), places=False)
        with pytest.raises(Problem) as refused:
            begin(sink, "t", records(b"3"), places=False)
        assert (refused.value.status, refused.value.extra["retry"]) == (503, 1)
        assert guard.retry_after_seconds == 2, "the first pause, as no time goes by"
        assert 2 <= int(refused.value.headers["retry-after"]) <= math.ceil(2 * 1.2 + 2)
        assert sink.queued == 0
        assert await sink.close(1) == 0

    run(scenario())


def test_requests_are_refused_at_once_while_kafka_is_known_to_be_down() -> None:
    """Each counts as a failed attempt."""

    async def scenario() -> None:
        guard = producer_guard()
        sink = Sink(NOWHERE, guard, request_seconds=30)
        sink.down = "no answer"
        for _ in range(5):
            with pytest.raises(KafkaDownError):
                sink.submit("t", records(b"1"), places=False)
        assert (guard.state, sink.queued) == ("open", 0)

    run(scenario())


def test_a_full_queue_refuses_whole_requests_and_is_no_failure_of_kafka() -> None:
    """Nothing of a refused request is queued."""

    async def scenario() -> None:
        guard = producer_guard(failures=1)
        sink = Sink(NOWHERE, guard, request_seconds=30)
        sink.submit("t", records(*[b"x"] * (QUEUE_MESSAGES - 1)), places=False)
        assert sink.busy
        with pytest.raises(QueueFullError):
            sink.submit("u", records(b"1", b"2"), places=False)
        assert (guard.state, sink.queued) == ("closed", QUEUE_MESSAGES - 1)
        sink.submit("u", records(b"1"), places=False)

    run(scenario())


def test_one_pipeline_takes_no_more_than_its_share_of_the_queue() -> None:
    """Others go on; one request always has its turn; what is done makes room."""

    async def scenario() -> None:
        guard = producer_guard(failures=1)
        sink = Sink(NOWHERE, guard, request_seconds=30, in_flight_bytes=100)
        sink.start()
        first = sink.submit("t", records(b"x" * 200), places=False)
        with pytest.raises(TopicFullError):
            sink.submit("t", records(b"1"), places=False)
        with pytest.raises(Problem) as refused:
            begin(sink, "t", records(b"1"), places=False)
        assert (refused.value.status, refused.value.code, refused.value.extra["retry"]) == (
            429,
            "in_flight_exceeded",
            1,
        )
        assert "retry-after" in refused.value.headers
        assert guard.state == "closed"
        sink.submit("u", records(b"x"), places=False)
        await first.future
        sink._guard = producer_guard()
        sink.submit("t", records(b"x"), places=False)
        sink.submit("t", records(b"x"), places=False)

    run(scenario())


def test_records_of_a_key_are_not_given_up_but_the_breaker_hears_of_them() -> None:
    """Their future is open after the publish timeout, which is one failure; the end of the process is unsure."""

    async def scenario() -> None:
        guard = producer_guard(failures=1)
        sink = Sink(NOWHERE, guard, request_seconds=30)
        sink.start()
        pending = sink.submit("t", records(b"1", b"2"), places=False, sure=True)
        await eventually_async(lambda: guard.state == "open", what="the breaker opens", seconds=10)
        assert not pending.future.done()
        assert await sink.close(0) == 2
        delivery = await asyncio.wait_for(pending.future, 5)
        assert {error.name() for error in delivery.failed.values()} == {"_PURGE_QUEUE"}
        assert not delivery.unsure, "they never left"

    run(scenario())


@pytest.mark.parametrize(
    ("code", "unsure"),
    [
        (KafkaError.MSG_SIZE_TOO_LARGE, False),
        (KafkaError.TOPIC_AUTHORIZATION_FAILED, False),
        (KafkaError._PURGE_QUEUE, False),
        (KafkaError._UNKNOWN_TOPIC, False),
        (KafkaError._PURGE_INFLIGHT, True),
        (KafkaError._MSG_TIMED_OUT, True),
        (KafkaError._FATAL, True),
        (KafkaError.NOT_ENOUGH_REPLICAS_AFTER_APPEND, True),
        (KafkaError.REQUEST_TIMED_OUT, True),
    ],
)
def test_a_failure_is_unsure_unless_the_record_is_surely_not_in_kafka(code: int, unsure: bool) -> None:
    async def scenario() -> None:
        for report in ("report", "reporter"):
            pending = Pending(records(b"a"), lambda _: None)
            tell = pending.report if report == "report" else pending.reporter(0)
            tell(KafkaError(code), Message(b"a"))
            assert (await pending.future).unsure is unsure

    run(scenario())


def test_waiting_ends_at_the_deadline() -> None:
    """Though the records' own time is not over."""

    async def scenario() -> None:
        sink = Sink(NOWHERE, producer_guard(), request_seconds=30)
        sink.start()
        pending = sink.submit("t", records(b"1"), places=False)
        began = time.monotonic()
        with pytest.raises(TimeoutError):
            await finish(sink, "t", records(b"1"), pending, places=False, deadline=Deadline.after(0.1))
        assert time.monotonic() - began < 1
        await pending.future

    run(scenario())


def test_a_watch_without_kafka_says_so() -> None:
    """Down after two failures, told by the dependency of /health."""

    async def scenario() -> None:
        guard = producer_guard()
        sink = Sink(NOWHERE, guard, request_seconds=30)
        watch = Watch(sink, guard)
        assert (watch.up, watch.dependency().detail) == (False, "not asked yet")
        for _ in range(FAILURES - 1):
            watch._failed("connection refused")
        assert not sink.down
        watch._failed("connection refused")
        assert (sink.down, watch.dependency().up, watch.dependency().required) == ("connection refused", False, True)
        watch._answered()
        assert (sink.down, watch.up, watch.dependency().up) == ("", True, True)

    run(scenario())


def test_records_that_wait_long_are_told_though_brokers_answer_questions() -> None:
    """Unhealthy if none is acknowledged meanwhile, degraded if others are; ready for requests all along."""

    async def scenario() -> None:
        guard = producer_guard()
        sink = Sink(NOWHERE, guard, request_seconds=30)
        sink.start()
        watch = Watch(sink, guard)
        watch._answered()
        pending = sink.submit("t", records(b"1"), places=False)
        assert watch.dependency().up
        sink._began[0] -= STUCK_SECONDS
        told = watch.dependency()
        assert (told.up, told.required, watch.up) == (False, True, True)
        assert told.detail == "records have waited for 10 s to be acknowledged"
        sink.acknowledged_at = time.monotonic()
        assert (watch.dependency().up, watch.dependency().required) == (False, False)
        await pending.future
        assert (sink.waited, watch.dependency().up) == (0.0, True)

    run(scenario())


def test_a_kafka_that_answers_questions_and_takes_no_record_is_told_until_it_does() -> None:
    """Though requests are given up again and again; once nobody sends any more, nothing is known against it."""

    async def scenario() -> None:
        guard = producer_guard()
        sink = Sink(NOWHERE, guard, request_seconds=30)
        watch = Watch(sink, guard)
        watch._answered()
        assert sink.unheard == 0.0
        sink.down = "no answer"
        with pytest.raises(KafkaDownError):
            sink.submit("t", records(b"1"), places=False)
        watch._answered()
        assert watch.dependency().up
        sink._unheard_since = time.monotonic() - STUCK_SECONDS
        assert (watch.dependency().up, watch.dependency().required, watch.up) == (False, True, True)
        sink._tried_at -= LATELY_SECONDS
        sink._began[0] = time.monotonic()
        assert not watch.dependency().up
        sink._began.clear()
        assert (sink.unheard, watch.dependency().up) == (0.0, True)
        sink.down = "no answer"
        with pytest.raises(KafkaDownError):
            sink.submit("t", records(b"1"), places=False)
        watch._answered()
        assert watch.dependency().up

    run(scenario())


def test_other_producers_are_tried_where_records_wait_though_kafka_answers() -> None:
    """What waits goes on, but records without a key are given up once Kafka acknowledges later ones."""

    async def scenario() -> None:
        guard = producer_guard()
        sink = Sink(NOWHERE, guard, request_seconds=30)
        sink.start()
        watch, first = Watch(sink, guard), sink.producer
        watch._answered()
        stuck = sink.submit("t", records(b"1"), places=False)
        sure = sink.submit("t", records(b"2"), places=False, sure=True)
        watch._see_to_stuck()
        assert sink.producer is first
        sink._began[0] -= REPLACE_SECONDS
        watch._see_to_stuck()
        watch._see_to_stuck()
        assert sink.producer is not first
        assert len(first) > 0
        assert not stuck.future.done()
        assert watch._replaced_at is not None
        sink.acknowledged_at = watch._replaced_at + 2 * PAUSE_SECONDS
        watch._see_to_stuck()
        since = sink._unheard_since
        delivery = await asyncio.wait_for(stuck.future, 10)
        assert list(delivery.failed) == [0]
        assert sink._unheard_since == since
        assert not sure.future.done()
        await sink.close(0.0)

    run(scenario())


def test_a_trial_that_fails_just_before_kafka_answers_does_not_keep_the_breaker_open() -> None:
    """What was asked before it says nothing against it; the next answer does, long before the pause is over."""

    async def scenario() -> None:
        guard = producer_guard()
        sink = Sink(NOWHERE, guard, request_seconds=30)
        watch = Watch(sink, guard)
        for _ in range(FAILURES):
            watch._failed("connection refused")
        asked_at = time.monotonic()
        while guard.state == "closed":
            guard.settle(guard.admit(), KafkaException(KafkaError(KafkaError._TRANSPORT)))
        watch._answered(asked_at)
        assert (watch.up, guard.state) == (True, "open")
        watch._answered(time.monotonic())
        assert guard.state == "closed"

    run(scenario())
