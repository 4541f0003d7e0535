"""Handles requests to `POST /v1/pipelines/{pipeline}/events`, from the body to the answer."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass, replace

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from tidemill_chassis.resilience.config import Deadline
from tidemill_chassis.web.problems import Problem, bad_parameter, unavailable
from tidemill_contract.events.quarantine import Headers
from tidemill_ingest import metrics, results
from tidemill_ingest.body import Events, split_events
from tidemill_ingest.body_reader import MemoryBudget, MemoryReservation, read_body
from tidemill_ingest.idempotency.batch_outcome import BatchOutcome, merge
from tidemill_ingest.idempotency.requests import Attempt, IdempotencyStore, fingerprint
from tidemill_ingest.idempotency.shared import Batch
from tidemill_ingest.kafka.delivery import FULL_SECONDS, queue_records, wait_for_delivery
from tidemill_ingest.kafka.outcomes import Delivery, PendingDelivery
from tidemill_ingest.kafka.producers import PERSISTENT_TIMEOUT_SECONDS
from tidemill_ingest.kafka.sink import Sink
from tidemill_ingest.pipelines import Pipeline, Pipelines
from tidemill_ingest.quota import Quota
from tidemill_ingest.records import Records
from tidemill_ingest.results import Answer, Outcome, answer, refusal
from tidemill_ingest.webhooks.deliveries import KEY_PREFIX

log = logging.getLogger(__name__)

_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}


@dataclass(frozen=True)
class Options:
    """The query parameters."""

    wait: bool = True
    accept_partial: bool = True
    all_rows: bool = False
    is_webhook: bool = False
    """Whether the request was sent to a webhook. Invalid events then cause no error status."""

    @classmethod
    def from_request(cls, request: Request) -> Options:
        """Parse the query parameters of a request.

        Raises:
            Problem: a parameter is unknown or wrong (400).
        """
        parameters = dict(request.query_params)
        options = cls(
            wait=_boolean("wait", parameters.pop("wait", "true")),
            accept_partial=_boolean("accept_partial", parameters.pop("accept_partial", "true")),
            all_rows=_wants_all_rows(parameters.pop("results", "failed")),
        )
        for name in parameters:
            raise _bad_parameter(name, "is unknown; use wait, accept_partial or results")
        return options


def _boolean(name: str, text: str) -> bool:
    value = _BOOLEANS.get(text.lower())
    if value is None:
        raise _bad_parameter(name, f"must be true or false, not {text[:40]!r}")
    return value


def _wants_all_rows(text: str) -> bool:
    if text not in ("all", "failed"):
        raise _bad_parameter("results", f"must be all or failed, not {text[:40]!r}")
    return text == "all"


def _bad_parameter(name: str, detail: str) -> Problem:
    return bad_parameter(name[:40], detail)


@dataclass(frozen=True)
class EventsRequest:
    """The events and the options of a request."""

    pipeline: Pipeline
    events: Events
    options: Options
    size: int
    headers: Headers

    @property
    def topic(self) -> str:
        """The topic of the events."""
        return self.pipeline.config.events_topic

    @property
    def wants_offsets(self) -> bool:
        """Whether the answer contains the partition and offset of each event."""
        return self.options.all_rows and self.options.wait

    def to_records(self) -> Records:
        """Return the records of the events.

        Raises:
            _NothingSentError: some events are invalid, and `accept_partial` is false.
        """
        records = self.pipeline.record_builder.build(self.events.values, int(time.time() * 1000), self.headers)
        if records.invalid and not self.options.accept_partial:
            self.pipeline.count({results.REJECTED: len(records.values)})
            raise _NothingSentError(refusal(Outcome(records, Delivery(), self.events.ids)))
        return records


@dataclass(frozen=True)
class IdempotencyKey:
    """The Idempotency-Key of a request, and a hash of the request."""

    key: str
    fingerprint: bytes


class _NothingSentError(Exception):
    """Raised if no event of a request was sent. The exception contains the HTTP answer."""

    def __init__(self, reply: Answer) -> None:
        super().__init__("nothing was sent")
        self.answer = reply


class EventsHandler:
    """Accepts events, and answers when Kafka has acknowledged the events."""

    def __init__(self, pipelines: Pipelines, sink: Sink, quota: Quota, idempotency: IdempotencyStore) -> None:
        self._pipelines, self._sink, self._quota = pipelines, sink, quota
        self._memory, self._idempotency = MemoryBudget(), idempotency
        self._background_tasks: set[asyncio.Task[None]] = set()

    async def append(self, request: Request) -> Response:
        """Handle a request.

        Raises:
            Problem: nothing was sent.
        """
        options = Options.from_request(request)
        pipeline = self._pipelines.authorize(request.path_params["pipeline"], request.headers.get("authorization"))
        try:
            with self.reserve_memory() as reservation:
                body = await read_body(request, reservation)
                events_request = self.read(request, pipeline, options, body)
                key = _read_idempotency_key(request, events_request, body)
                reply = await self.accept(events_request, key, request.state.deadline)
        except ClientDisconnect:
            return Response(status_code=400)
        return reply.response()

    def reserve_memory(self) -> MemoryReservation:
        """Return a context manager that counts the memory of a request.

        Raises:
            Problem: the queue to Kafka is nearly full (503).
        """
        if self._sink.busy:
            raise unavailable("buffer_full", "the queue to Kafka is nearly full; send again later", FULL_SECONDS)
        return self._memory.reservation()

    def read(self, request: Request, pipeline: Pipeline, options: Options, body: bytes) -> EventsRequest:
        """Split a decompressed body into events.

        Raises:
            Problem: the type is unknown (415), the body is unreadable or empty (400), or there are too many events
                (413).
        """
        events = split_events(body, request.headers, keep_attributes=pipeline.record_builder.keep_attributes)
        metrics.INGEST_BYTES.labels(pipeline.name).inc(len(body))
        metrics.INGEST_BATCH_EVENTS.observe(len(events.values))
        return EventsRequest(
            pipeline, events, options, len(body), pipeline.record_builder.copied_headers(request.headers)
        )

    async def accept(
        self, request: EventsRequest, idempotency_key: IdempotencyKey | None, deadline: Deadline
    ) -> Answer:
        """Send the events of a request to Kafka, and return the answer.

        Raises:
            Problem: nothing was sent.
        """
        try:
            if idempotency_key is None:
                return await self._accept_unkeyed(request, deadline)
            batch = Batch(
                request.pipeline.name, idempotency_key.key, idempotency_key.fingerprint, len(request.events.values)
            )
            return await self._accept_idempotent(batch, request, deadline)
        except _NothingSentError as error:
            return error.answer

    async def _accept_unkeyed(self, request: EventsRequest, deadline: Deadline) -> Answer:
        quota_headers = self._charge(request, len(request.events.values), request.size)
        reply = await self._send(request, request.to_records(), deadline)
        return replace(reply, headers={**reply.headers, **quota_headers}) if quota_headers else reply

    async def _accept_idempotent(self, batch: Batch, request: EventsRequest, deadline: Deadline) -> Answer:
        quota_headers: dict[str, str] = {}

        def begin(earlier: BatchOutcome | None) -> Attempt:
            indexes = sorted(earlier.failed) if earlier is not None else list(range(batch.total))
            quota_headers.update(self._charge(request, len(indexes), request.size * len(indexes) // batch.total))
            return self._begin_attempt(request, request.to_records(), earlier, indexes)

        options = request.options
        result = await self._idempotency.deliver_once(batch, begin, deadline, wait=options.wait)
        outcome = result.outcome.to_outcome(request.events.ids)
        reply = answer(outcome, wait=options.wait, all_rows=options.all_rows, is_webhook=options.is_webhook)
        key_headers = {"idempotency-replayed": "true"} if result.replayed else {}
        if result.outcome.unsure:
            key_headers["idempotency-unsure"] = "true"
        return replace(reply, headers={**reply.headers, **quota_headers, **key_headers})

    def _charge(self, request: EventsRequest, events: int, size: int) -> dict[str, str]:
        try:
            return self._quota.take(request.pipeline.name, events, size)
        except Problem:
            request.pipeline.count({results.REJECTED: events})
            raise

    def _begin_attempt(
        self, request: EventsRequest, records: Records, earlier: BatchOutcome | None, indexes: list[int]
    ) -> Attempt:
        if earlier is not None:
            records = records.subset(indexes)
        pending = self._queue(request, records, keep_retrying=True)
        queued = merge(earlier, indexes, records, replace(pending.delivery))

        async def final_outcome() -> BatchOutcome:
            deadline = Deadline.after(2 * PERSISTENT_TIMEOUT_SECONDS)
            delivery = await wait_for_delivery(
                self._sink,
                request.topic,
                records,
                pending,
                with_offsets=request.wants_offsets,
                deadline=deadline,
                keep_retrying=True,
            )
            request.pipeline.count(Outcome(records, delivery).counts)
            if not request.options.wait:
                _log_lost(request.pipeline, delivery)
            return merge(earlier, indexes, records, delivery)

        return Attempt(queued, final_outcome())

    def _queue(self, request: EventsRequest, records: Records, *, keep_retrying: bool = False) -> PendingDelivery:
        try:
            return queue_records(
                self._sink,
                request.topic,
                records,
                with_offsets=request.wants_offsets,
                keep_retrying=keep_retrying,
                client_waits=request.options.wait,
            )
        except Problem:
            request.pipeline.count({results.RETRY: len(records.values)})
            raise

    async def _send(self, request: EventsRequest, records: Records, deadline: Deadline) -> Answer:
        pipeline, options, with_offsets = request.pipeline, request.options, request.wants_offsets
        pending = self._queue(request, records)
        if not options.wait:
            outcome = Outcome(records, replace(pending.delivery), request.events.ids)
            reply = answer(outcome, wait=False, all_rows=options.all_rows)
            self._finish_in_background(pipeline, records, pending)
            return reply
        try:
            delivery = await wait_for_delivery(
                self._sink, request.topic, records, pending, with_offsets=with_offsets, deadline=deadline
            )
        except TimeoutError:
            pipeline.count({results.RETRY: len(records.values)})
            detail = "Kafka has not acknowledged the events in time, but may still write them; send them again later"
            raise unavailable("not_acknowledged", detail, FULL_SECONDS, retry=len(records.values)) from None
        outcome = Outcome(records, delivery, request.events.ids)
        pipeline.count(outcome.counts)
        return answer(outcome, wait=True, all_rows=options.all_rows, is_webhook=options.is_webhook)

    def _finish_in_background(self, pipeline: Pipeline, records: Records, pending: PendingDelivery) -> None:
        async def finish() -> None:
            deadline = Deadline.after(self._sink.publish_seconds + FULL_SECONDS)
            topic = pipeline.config.events_topic
            delivery = await wait_for_delivery(
                self._sink, topic, records, pending, with_offsets=False, deadline=deadline
            )
            pipeline.count(Outcome(records, delivery).counts)
            _log_lost(pipeline, delivery)

        task = asyncio.ensure_future(finish())
        self._background_tasks.add(task)
        task.add_done_callback(self._background_tasks.discard)

    async def close(self, seconds: float) -> None:
        """Wait at most `seconds` for the delivery of events that were sent with `wait=false`."""
        if self._background_tasks:
            await asyncio.wait(self._background_tasks, timeout=seconds)


def _read_idempotency_key(request: Request, events_request: EventsRequest, body: bytes) -> IdempotencyKey | None:
    key = request.headers.get("idempotency-key")
    if key is None:
        return None
    if key.startswith(KEY_PREFIX):
        remedy = f"use another key: only webhook deliveries have keys that begin with {KEY_PREFIX}"
        raise Problem(400, "invalid_idempotency_key", f"Idempotency-Key: {remedy}")
    query = "&".join(sorted(request.url.query.split("&")))
    copied_headers = (f"{name}: {value!r}" for name, value in events_request.headers)
    parts = (query, request.headers.get("content-type", ""), request.headers.get("ce-id", ""), *copied_headers)
    return IdempotencyKey(key, fingerprint(body, *parts))


def _log_lost(pipeline: Pipeline, delivery: Delivery) -> None:
    for error in list(delivery.failed.values())[:1]:
        lost = len(delivery.failed)
        log.error("%d events of %s, sent with wait=false, could not be written: %s", lost, pipeline.name, error.str())
