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
from tidemill_ingest.body import Events, split
from tidemill_ingest.body_reader import Held, Memory, read_body
from tidemill_ingest.idempotency.known import Known, merge
from tidemill_ingest.idempotency.requests import Attempt, Replays, fingerprint
from tidemill_ingest.idempotency.shared import Batch
from tidemill_ingest.kafka.delivery import FULL_SECONDS, begin, finish
from tidemill_ingest.kafka.outcomes import Delivery, Pending
from tidemill_ingest.kafka.producers import SURE_SECONDS
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
    everything: bool = False
    signed: bool = False
    """Whether the request was sent to a webhook. Invalid events then cause no error status."""

    @classmethod
    def of(cls, request: Request) -> Options:
        """Parse the query parameters of a request.

        Raises:
            Problem: a parameter is unknown or wrong (400).
        """
        given = dict(request.query_params)
        options = cls(
            wait=_boolean("wait", given.pop("wait", "true")),
            accept_partial=_boolean("accept_partial", given.pop("accept_partial", "true")),
            everything=_everything(given.pop("results", "failed")),
        )
        for name in given:
            raise _bad_parameter(name, "is unknown; use wait, accept_partial or results")
        return options


def _boolean(name: str, text: str) -> bool:
    value = _BOOLEANS.get(text.lower())
    if value is None:
        raise _bad_parameter(name, f"must be true or false, not {text[:40]!r}")
    return value


def _everything(text: str) -> bool:
    if text not in ("all", "failed"):
        raise _bad_parameter("results", f"must be all or failed, not {text[:40]!r}")
    return text == "all"


def _bad_parameter(name: str, detail: str) -> Problem:
    return bad_parameter(name[:40], detail)


@dataclass(frozen=True)
class Sent:
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
    def places(self) -> bool:
        """Whether the answer contains the partition and offset of each event."""
        return self.options.everything and self.options.wait

    def judged(self) -> Records:
        """Return the records of the events.

        Raises:
            _NothingSentError: some events are invalid, and `accept_partial` is false.
        """
        records = self.pipeline.judge.judge(self.events.values, int(time.time() * 1000), self.headers)
        if records.invalid and not self.options.accept_partial:
            self.pipeline.count({results.REJECTED: len(records.values)})
            raise _NothingSentError(refusal(Outcome(records, Delivery(), self.events.ids)))
        return records


@dataclass(frozen=True)
class Once:
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

    def __init__(self, pipelines: Pipelines, sink: Sink, quota: Quota, replays: Replays) -> None:
        self._pipelines, self._sink, self._quota = pipelines, sink, quota
        self._memory, self._replays = Memory(), replays
        self._unanswered: set[asyncio.Task[None]] = set()

    async def append(self, request: Request) -> Response:
        """Handle a request.

        Raises:
            Problem: nothing was sent.
        """
        options = Options.of(request)
        pipeline = self._pipelines.open(request.path_params["pipeline"], request.headers.get("authorization"))
        try:
            with self.room() as held:
                body = await read_body(request, held)
                sent = self.read(request, pipeline, options, body)
                reply = await self.accept(sent, _once(request, sent, body), request.state.deadline)
        except ClientDisconnect:
            return Response(status_code=400)
        return reply.response()

    def room(self) -> Held:
        """Return a context manager that counts the memory of a request.

        Raises:
            Problem: the queue to Kafka is nearly full (503).
        """
        if self._sink.busy:
            raise unavailable("buffer_full", "the queue to Kafka is nearly full; send again later", FULL_SECONDS)
        return self._memory.hold()

    def read(self, request: Request, pipeline: Pipeline, options: Options, body: bytes) -> Sent:
        """Split a decompressed body into events.

        Raises:
            Problem: the type is unknown (415), the body is unreadable or empty (400), or there are too many events
                (413).
        """
        events = split(body, request.headers, whole=pipeline.judge.whole)
        metrics.INGEST_BYTES.labels(pipeline.name).inc(len(body))
        metrics.INGEST_BATCH_EVENTS.observe(len(events.values))
        return Sent(pipeline, events, options, len(body), pipeline.judge.passed_on(request.headers))

    async def accept(self, sent: Sent, once: Once | None, deadline: Deadline) -> Answer:
        """Send the events of a request to Kafka, and return the answer.

        Raises:
            Problem: nothing was sent.
        """
        try:
            if once is None:
                return await self._take(sent, deadline)
            batch = Batch(sent.pipeline.name, once.key, once.fingerprint, len(sent.events.values))
            return await self._take_once(batch, sent, deadline)
        except _NothingSentError as nothing:
            return nothing.answer

    async def _take(self, sent: Sent, deadline: Deadline) -> Answer:
        quota = self._charge(sent, len(sent.events.values), sent.size)
        reply = await self._send(sent, sent.judged(), deadline)
        return replace(reply, headers={**reply.headers, **quota}) if quota else reply

    async def _take_once(self, batch: Batch, sent: Sent, deadline: Deadline) -> Answer:
        quota: dict[str, str] = {}

        def begin(before: Known | None) -> Attempt:
            indexes = sorted(before.failed) if before is not None else list(range(batch.total))
            quota.update(self._charge(sent, len(indexes), sent.size * len(indexes) // batch.total))
            return self._begin(sent, sent.judged(), before, indexes)

        options = sent.options
        batch_outcome = await self._replays.answer(batch, begin, deadline, wait=options.wait)
        outcome = batch_outcome.known.outcome(sent.events.ids)
        text = answer(outcome, wait=options.wait, everything=options.everything, signed=options.signed)
        marks = {"idempotency-replayed": "true"} if batch_outcome.replayed else {}
        if batch_outcome.known.unsure:
            marks["idempotency-unsure"] = "true"
        return replace(text, headers={**text.headers, **quota, **marks})

    def _charge(self, sent: Sent, events: int, size: int) -> dict[str, str]:
        try:
            return self._quota.take(sent.pipeline.name, events, size)
        except Problem:
            sent.pipeline.count({results.REJECTED: events})
            raise

    def _begin(self, sent: Sent, records: Records, before: Known | None, indexes: list[int]) -> Attempt:
        if before is not None:
            records = records.subset(indexes)
        pending = self._queue(sent, records, sure=True)
        queued = merge(before, indexes, records, replace(pending.delivery))

        async def end() -> Known:
            deadline = Deadline.after(2 * SURE_SECONDS)
            delivery = await finish(
                self._sink, sent.topic, records, pending, places=sent.places, deadline=deadline, sure=True
            )
            sent.pipeline.count(Outcome(records, delivery).counts)
            if not sent.options.wait:
                _tell_lost(sent.pipeline, delivery)
            return merge(before, indexes, records, delivery)

        return Attempt(queued, end())

    def _queue(self, sent: Sent, records: Records, *, sure: bool = False) -> Pending:
        try:
            return begin(self._sink, sent.topic, records, places=sent.places, sure=sure, waited=sent.options.wait)
        except Problem:
            sent.pipeline.count({results.RETRY: len(records.values)})
            raise

    async def _send(self, sent: Sent, records: Records, deadline: Deadline) -> Answer:
        pipeline, options, places = sent.pipeline, sent.options, sent.places
        pending = self._queue(sent, records)
        if not options.wait:
            outcome = Outcome(records, replace(pending.delivery), sent.events.ids)
            reply = answer(outcome, wait=False, everything=options.everything)
            self._see_through(pipeline, records, pending)
            return reply
        try:
            delivery = await finish(self._sink, sent.topic, records, pending, places=places, deadline=deadline)
        except TimeoutError:
            pipeline.count({results.RETRY: len(records.values)})
            detail = "Kafka has not acknowledged the events in time, but may still write them; send them again later"
            raise unavailable("not_acknowledged", detail, FULL_SECONDS, retry=len(records.values)) from None
        outcome = Outcome(records, delivery, sent.events.ids)
        pipeline.count(outcome.counts)
        return answer(outcome, wait=True, everything=options.everything, signed=options.signed)

    def _see_through(self, pipeline: Pipeline, records: Records, pending: Pending) -> None:
        async def attend() -> None:
            deadline = Deadline.after(self._sink.publish_seconds + FULL_SECONDS)
            topic = pipeline.config.events_topic
            delivery = await finish(self._sink, topic, records, pending, places=False, deadline=deadline)
            pipeline.count(Outcome(records, delivery).counts)
            _tell_lost(pipeline, delivery)

        task = asyncio.ensure_future(attend())
        self._unanswered.add(task)
        task.add_done_callback(self._unanswered.discard)

    async def close(self, seconds: float) -> None:
        """Wait at most `seconds` for the delivery of events that were sent with `wait=false`."""
        if self._unanswered:
            await asyncio.wait(self._unanswered, timeout=seconds)


def _once(request: Request, sent: Sent, body: bytes) -> Once | None:
    key = request.headers.get("idempotency-key")
    if key is None:
        return None
    if key.startswith(KEY_PREFIX):
        remedy = f"use another key: only webhook deliveries have keys that begin with {KEY_PREFIX}"
        raise Problem(400, "invalid_idempotency_key", f"Idempotency-Key: {remedy}")
    query = "&".join(sorted(request.url.query.split("&")))
    passed_on = (f"{name}: {value!r}" for name, value in sent.headers)
    parts = (query, request.headers.get("content-type", ""), request.headers.get("ce-id", ""), *passed_on)
    return Once(key, fingerprint(body, *parts))


def _tell_lost(pipeline: Pipeline, delivery: Delivery) -> None:
    for error in list(delivery.failed.values())[:1]:
        lost = len(delivery.failed)
        log.error("%d events of %s, sent with wait=false, could not be written: %s", lost, pipeline.name, error.str())
