"""Sends a request's records and waits for the delivery."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

from confluent_kafka import KafkaError

from tidemill_chassis.resilience.config import BreakerOpen, Deadline
from tidemill_chassis.web.problems import Problem, retry_after, unavailable
from tidemill_contract.events.decoder import InvalidEvent, Reason
from tidemill_ingest.kafka.outcomes import Delivery, PendingDelivery
from tidemill_ingest.kafka.queue import QueueFullError, TopicFullError
from tidemill_ingest.kafka.sink import KafkaDownError, Sink
from tidemill_ingest.records import Records

DOWN_SECONDS, FULL_SECONDS = 3.0, 1.0
"""The Retry-After header: DOWN_SECONDS if Kafka is down, or FULL_SECONDS if the queue is full."""
_ANSWER_MARGIN_SECONDS = 0.3
_TOO_LARGE = (KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.RECORD_LIST_TOO_LARGE)


def queue_records(
    sink: Sink,
    topic: str,
    records: Records,
    *,
    with_offsets: bool,
    keep_retrying: bool = False,
    client_waits: bool = True,
) -> PendingDelivery:
    """Queue the records.

    Raises:
        Problem: Kafka is down (503), the queue is full (503), or the pipeline has too many queued records (429).
    """
    unsent_counts = {"accepted": 0, "quarantined": 0, "retry": len(records.values), "results": []}
    try:
        return sink.submit(
            topic, records, with_offsets=with_offsets, keep_retrying=keep_retrying, client_waits=client_waits
        )
    except BreakerOpen as error:
        detail = "Kafka has failed several times in a row: nothing was sent; send again later"
        raise unavailable("kafka_unavailable", detail, error.retry_after_seconds, **unsent_counts) from None
    except KafkaDownError:
        detail = "Kafka does not answer: nothing was sent; send again later"
        raise unavailable("kafka_unavailable", detail, DOWN_SECONDS, **unsent_counts) from None
    except QueueFullError as error:
        raise unavailable(
            "buffer_full", f"{error}: nothing was sent; send again later", FULL_SECONDS, **unsent_counts
        ) from None
    except TopicFullError as error:
        detail = f"{error}, which is the limit: nothing was sent; send again later"
        raise Problem(429, "in_flight_exceeded", detail, headers=retry_after(FULL_SECONDS), **unsent_counts) from None


async def wait_for_delivery(
    sink: Sink,
    topic: str,
    records: Records,
    pending: PendingDelivery,
    *,
    with_offsets: bool,
    deadline: Deadline,
    keep_retrying: bool = False,
) -> Delivery:
    """Wait until each record is acknowledged or has failed.

    Raises:
        TimeoutError: the deadline passed before all outcomes were known.
    """
    delivery = await _wait(pending, deadline)
    for index, error in list(delivery.failed.items()):
        if error.code() in _TOO_LARGE:
            submit = partial(sink.submit, topic, with_offsets=with_offsets, keep_retrying=keep_retrying)
            await _send_alone(submit, records, delivery, index, deadline)
    return delivery


async def _send_alone(
    submit: Callable[[Records], PendingDelivery], records: Records, delivery: Delivery, index: int, deadline: Deadline
) -> None:
    invalid_event = records.invalid.get(index) or InvalidEvent(Reason.TOO_LARGE, None, "larger than the topic accepts")
    for attempt in (records.single(index), records.truncated(index, invalid_event)):
        try:
            single_delivery = await _wait(submit(attempt), deadline)
        except TimeoutError:
            delivery.unsure = True
            return
        except (BreakerOpen, KafkaDownError, QueueFullError, TopicFullError):
            return  # `delivery.failed` still contains the record, so the client sends the record again
        error = single_delivery.failed.get(0)
        if error is None:
            del delivery.failed[index]
            if single_delivery.offsets:
                delivery.offsets[index] = single_delivery.offsets[0]
            if attempt.invalid:
                records.invalid[index] = invalid_event
            return
        delivery.record_failure(index, error)
        if error.code() not in _TOO_LARGE:
            return


async def _wait(pending: PendingDelivery, deadline: Deadline) -> Delivery:
    timeout = max(0.0, deadline.remaining() - _ANSWER_MARGIN_SECONDS)
    # A timeout must not cancel the future, because Kafka can still acknowledge the records later.
    return await asyncio.wait_for(asyncio.shield(pending.future), timeout)
