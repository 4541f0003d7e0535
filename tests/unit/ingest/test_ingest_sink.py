"""Tests of the Kafka sink: delivery reports, the breaker, refused requests, and the monitor. No broker is running."""

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
from tidemill_ingest.kafka.delivery import queue_records, wait_for_delivery
from tidemill_ingest.kafka.monitor import (
    DOWN_AFTER_FAILURES,
    PAUSE_SECONDS,
    REPLACE_SECONDS,
    STUCK_SECONDS,
    KafkaMonitor,
)
from tidemill_ingest.kafka.outcomes import Delivery, PendingDelivery
from tidemill_ingest.kafka.producers import QUEUE_MESSAGES
from tidemill_ingest.kafka.queue import QueueFullError, TopicFullError
from tidemill_ingest.kafka.sink import IDLE_AFTER_SECONDS, KafkaDownError, Sink
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
    """The message of a delivery report."""

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
def test_delivery_reports_in_any_order_fail_the_records_that_they_name(
    outcomes: list[tuple[bytes, bool]], rnd: Any
) -> None:
    """Records with equal values may be exchanged, records with different values are not."""

    async def scenario() -> None:
        ends: list[Delivery] = []
        values = [value for value, _ in outcomes]
        pending = PendingDelivery(records(*values), ends.append)
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


def test_a_delivery_includes_unqueued_records_and_the_offsets_of_written_records() -> None:
    """The future is done only when the outcome of every record is known."""

    async def scenario() -> None:
        pending = PendingDelivery(records(b"same", b"same", b"same"), lambda _: None)
        pending.record_unsent(2, KafkaError(KafkaError._QUEUE_FULL))
        pending.report_callback(0)(None, Message(b"same", 3, 7))
        assert not pending.future.done()
        pending.report_callback(1)(TIMED_OUT, Message(b"same"))
        delivery = await pending.future
        assert delivery.offsets == {0: (3, 7)}
        assert {index: error.name() for index, error in delivery.failed.items()} == {
            1: "_MSG_TIMED_OUT",
            2: "_QUEUE_FULL",
        }

    run(scenario())


def test_reports_after_a_cancelled_request_complete_its_delivery() -> None:

    async def scenario() -> None:
        ends: list[Delivery] = []
        pending = PendingDelivery(records(b"a"), ends.append)
        pending.future.cancel()
        pending.report(TIMED_OUT, Message(b"a"))
        assert list(ends[0].failed) == [0]

    run(scenario())


def test_requests_that_time_out_open_the_breaker_which_refuses_later_requests() -> None:
    """Records that time out are failures in the delivery, not exceptions."""

    async def scenario() -> None:
        guard = producer_guard(clock=lambda: 0.0)
        sink = Sink(NOWHERE, guard, request_seconds=30)
        sink.start()
        deliveries = [sink.submit("t", records(b"1", b"2"), with_offsets=False) for _ in range(5)]
        for pending in deliveries:
            delivery = await wait_for_delivery(
                sink, "t", records(b"1", b"2"), pending, with_offsets=False, deadline=Deadline.after(20)
            )
            assert {error.name() for error in delivery.failed.values()} == {"_MSG_TIMED_OUT"}
            assert sorted(delivery.failed) == [0, 1]
        assert guard.state == "open"
        with pytest.raises(BreakerOpen):
            sink.submit("t", records(b"3"), with_offsets=False)
        with pytest.raises(Problem) as refused:
            queue_records(sink, "t", records(b"3"), with_offsets=False)
        assert (refused.value.status, refused.value.extra["retry"]) == (503, 1)
        assert guard.retry_after_seconds == 2, "the clock stands still, therefore the whole first pause is left"
        assert 2 <= int(refused.value.headers["retry-after"]) <= math.ceil(2 * 1.2 + 2)
        assert sink.queued == 0
        assert await sink.close(1) == 0

    run(scenario())


def test_requests_are_refused_at_once_and_count_as_failures_while_kafka_is_down() -> None:

    async def scenario() -> None:
        guard = producer_guard()
        sink = Sink(NOWHERE, guard, request_seconds=30)
        sink.down_reason = "no answer"
        for _ in range(5):
            with pytest.raises(KafkaDownError):
                sink.submit("t", records(b"1"), with_offsets=False)
        assert (guard.state, sink.queued) == ("open", 0)

    run(scenario())


def test_a_full_queue_refuses_requests_without_opening_the_breaker() -> None:
    """No record of a refused request is queued."""

    async def scenario() -> None:
        guard = producer_guard(failures=1)
        sink = Sink(NOWHERE, guard, request_seconds=30)
        sink.submit("t", records(*[b"x"] * (QUEUE_MESSAGES - 1)), with_offsets=False)
        assert sink.busy
        with pytest.raises(QueueFullError):
            sink.submit("u", records(b"1", b"2"), with_offsets=False)
        assert (guard.state, sink.queued) == ("closed", QUEUE_MESSAGES - 1)
        sink.submit("u", records(b"1"), with_offsets=False)

    run(scenario())


def test_a_topic_cannot_use_more_than_its_share_of_the_queue() -> None:
    """Other topics are not affected. A topic without queued records always accepts a request."""

    async def scenario() -> None:
        guard = producer_guard(failures=1)
        sink = Sink(NOWHERE, guard, request_seconds=30, in_flight_bytes=100)
        sink.start()
        first = sink.submit("t", records(b"x" * 200), with_offsets=False)
        with pytest.raises(TopicFullError):
            sink.submit("t", records(b"1"), with_offsets=False)
        with pytest.raises(Problem) as refused:
            queue_records(sink, "t", records(b"1"), with_offsets=False)
        assert (refused.value.status, refused.value.code, refused.value.extra["retry"]) == (
            429,
            "in_flight_exceeded",
            1,
        )
        assert "retry-after" in refused.value.headers
        assert guard.state == "closed"
        sink.submit("u", records(b"x"), with_offsets=False)
        await first.future
        sink._guard = producer_guard()
        sink.submit("t", records(b"x"), with_offsets=False)
        sink.submit("t", records(b"x"), with_offsets=False)

    run(scenario())


def test_the_publish_timeout_of_persistent_records_is_a_failure_but_does_not_drop_them() -> None:
    """If the sink closes, records that were never sent are certain not to be written."""

    async def scenario() -> None:
        guard = producer_guard(failures=1)
        sink = Sink(NOWHERE, guard, request_seconds=30)
        sink.start()
        pending = sink.submit("t", records(b"1", b"2"), with_offsets=False, keep_retrying=True)
        await eventually_async(lambda: guard.state == "open", what="the breaker opens", seconds=10)
        assert not pending.future.done()
        assert await sink.close(0) == 2
        delivery = await asyncio.wait_for(pending.future, 5)
        assert {error.name() for error in delivery.failed.values()} == {"_PURGE_QUEUE"}
        assert not delivery.unsure, "the records were never sent"

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
def test_a_delivery_is_unsure_unless_its_error_means_that_the_record_was_not_written(code: int, unsure: bool) -> None:
    async def scenario() -> None:
        for report in ("report", "report_callback"):
            pending = PendingDelivery(records(b"a"), lambda _: None)
            callback = pending.report if report == "report" else pending.report_callback(0)
            callback(KafkaError(code), Message(b"a"))
            assert (await pending.future).unsure is unsure

    run(scenario())


def test_a_request_stops_waiting_at_its_deadline_before_its_records_time_out() -> None:

    async def scenario() -> None:
        sink = Sink(NOWHERE, producer_guard(), request_seconds=30)
        sink.start()
        pending = sink.submit("t", records(b"1"), with_offsets=False)
        began = time.monotonic()
        with pytest.raises(TimeoutError):
            await wait_for_delivery(sink, "t", records(b"1"), pending, with_offsets=False, deadline=Deadline.after(0.1))
        assert time.monotonic() - began < 1
        await pending.future

    run(scenario())


def test_kafka_is_down_after_two_failed_probes_and_up_after_an_answer() -> None:

    async def scenario() -> None:
        guard = producer_guard()
        sink = Sink(NOWHERE, guard, request_seconds=30)
        monitor = KafkaMonitor(sink, guard)
        assert (monitor.up, monitor.dependency().detail) == (False, "not asked yet")
        for _ in range(DOWN_AFTER_FAILURES - 1):
            monitor._record_failure("connection refused")
        assert not sink.down_reason
        monitor._record_failure("connection refused")
        assert (sink.down_reason, monitor.dependency().up, monitor.dependency().required) == (
            "connection refused",
            False,
            True,
        )
        monitor._record_success()
        assert (sink.down_reason, monitor.up, monitor.dependency().up) == ("", True, True)

    run(scenario())


def test_health_shows_records_that_wait_long_although_kafka_answers_probes() -> None:
    """Health is unhealthy if no record is acknowledged meanwhile, and degraded if others are. Readiness is kept."""

    async def scenario() -> None:
        guard = producer_guard()
        sink = Sink(NOWHERE, guard, request_seconds=30)
        sink.start()
        monitor = KafkaMonitor(sink, guard)
        monitor._record_success()
        pending = sink.submit("t", records(b"1"), with_offsets=False)
        assert monitor.dependency().up
        sink._start_times[0] -= STUCK_SECONDS
        dependency = monitor.dependency()
        assert (dependency.up, dependency.required, monitor.up) == (False, True, True)
        assert dependency.detail == "records have waited for 10 s to be acknowledged"
        sink.acknowledged_at = time.monotonic()
        assert (monitor.dependency().up, monitor.dependency().required) == (False, False)
        await pending.future
        assert (sink.oldest_wait_seconds, monitor.dependency().up) == (0.0, True)

    run(scenario())


def test_health_shows_a_kafka_that_answers_probes_but_acknowledges_no_record() -> None:
    """Refused requests do not reset the time. Health recovers when no request was tried lately."""

    async def scenario() -> None:
        guard = producer_guard()
        sink = Sink(NOWHERE, guard, request_seconds=30)
        monitor = KafkaMonitor(sink, guard)
        monitor._record_success()
        assert sink.silent_seconds == 0.0
        sink.down_reason = "no answer"
        with pytest.raises(KafkaDownError):
            sink.submit("t", records(b"1"), with_offsets=False)
        monitor._record_success()
        assert monitor.dependency().up
        sink._silent_since = time.monotonic() - STUCK_SECONDS
        assert (monitor.dependency().up, monitor.dependency().required, monitor.up) == (False, True, True)
        sink._last_activity_at -= IDLE_AFTER_SECONDS
        sink._start_times[0] = time.monotonic()
        assert not monitor.dependency().up
        sink._start_times.clear()
        assert (sink.silent_seconds, monitor.dependency().up) == (0.0, True)
        sink.down_reason = "no answer"
        with pytest.raises(KafkaDownError):
            sink.submit("t", records(b"1"), with_offsets=False)
        monitor._record_success()
        assert monitor.dependency().up

    run(scenario())


def test_the_producer_is_replaced_if_records_wait_although_kafka_answers_probes() -> None:
    """Waiting records without `keep_retrying` are dropped once Kafka acknowledges later records."""

    async def scenario() -> None:
        guard = producer_guard()
        sink = Sink(NOWHERE, guard, request_seconds=30)
        sink.start()
        monitor, first = KafkaMonitor(sink, guard), sink.producer
        monitor._record_success()
        stuck = sink.submit("t", records(b"1"), with_offsets=False)
        persistent = sink.submit("t", records(b"2"), with_offsets=False, keep_retrying=True)
        monitor._replace_stuck_producers()
        assert sink.producer is first
        sink._start_times[0] -= REPLACE_SECONDS
        monitor._replace_stuck_producers()
        monitor._replace_stuck_producers()
        assert sink.producer is not first
        assert len(first) > 0
        assert not stuck.future.done()
        assert monitor._replaced_at is not None
        sink.acknowledged_at = monitor._replaced_at + 2 * PAUSE_SECONDS
        monitor._replace_stuck_producers()
        since = sink._silent_since
        delivery = await asyncio.wait_for(stuck.future, 10)
        assert list(delivery.failed) == [0]
        assert sink._silent_since == since
        assert not persistent.future.done()
        await sink.close(0.0)

    run(scenario())


def test_a_successful_probe_closes_the_breaker_before_its_pause_is_over() -> None:
    """An answer to a probe from before the last failure does not close the breaker."""

    async def scenario() -> None:
        guard = producer_guard()
        sink = Sink(NOWHERE, guard, request_seconds=30)
        monitor = KafkaMonitor(sink, guard)
        for _ in range(DOWN_AFTER_FAILURES):
            monitor._record_failure("connection refused")
        probe_began = time.monotonic()
        while guard.state == "closed":
            guard.record_result(guard.admit(), KafkaException(KafkaError(KafkaError._TRANSPORT)))
        monitor._record_success(probe_began)
        assert (monitor.up, guard.state) == (True, "open")
        monitor._record_success(time.monotonic())
        assert guard.state == "closed"

    run(scenario())
