"""`POST /v1/pipelines/{pipeline}/events`: what is done with a request, from its body to its answer."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from functools import partial

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from tidemill_contract import metrics
from tidemill_contract.resilience import Deadline
from tidemill_ingest import results
from tidemill_ingest.body import Events, split
from tidemill_ingest.delivery import FULL_SECONDS, begin, finish
from tidemill_ingest.pipelines import Pipeline, Pipelines
from tidemill_ingest.problems import Refused, unavailable
from tidemill_ingest.quota import Quota
from tidemill_ingest.reading import Memory, read_body
from tidemill_ingest.records import Records
from tidemill_ingest.replays import Replays, fingerprint
from tidemill_ingest.results import Answer, Outcome, answer, refusal
from tidemill_ingest.sink import Delivery, Pending, Sink

log = logging.getLogger(__name__)

_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}


@dataclass(frozen=True)
class Options:
    """The query parameters."""

    wait: bool = True
    accept_partial: bool = True
    everything: bool = False

    @classmethod
    def of(cls, request: Request) -> Options:
        """Those of a request.

        Raises:
            Refused: 400, one is unknown or wrong.
        """
        given = dict(request.query_params)
        options = cls(
            wait=_boolean("wait", given.pop("wait", "true")),
            accept_partial=_boolean("accept_partial", given.pop("accept_partial", "true")),
            everything=_everything(given.pop("results", "failed")),
        )
        for name in given:
            raise _bad_parameter(name, "is not known; wait, accept_partial and results are")
        return options


def _boolean(name: str, text: str) -> bool:
    value = _BOOLEANS.get(text.lower())
    if value is None:
        raise _bad_parameter(name, f"takes true or false, not {text[:40]!r}")
    return value


def _everything(text: str) -> bool:
    if text not in ("all", "failed"):
        raise _bad_parameter("results", f"takes all or failed, not {text[:40]!r}")
    return text == "all"


def _bad_parameter(name: str, detail: str) -> Refused:
    return Refused(400, "invalid_parameter", f"{name[:40]}: {detail}", parameter=name[:40])


class EventsHandler:
    """Takes events and answers when Kafka has acknowledged them."""

    def __init__(self, pipelines: Pipelines, sink: Sink, quota: Quota) -> None:
        self._pipelines, self._sink, self._quota = pipelines, sink, quota
        self._memory, self._replays = Memory(), Replays()
        self._unanswered: set[asyncio.Task[None]] = set()

    async def append(self, request: Request) -> Response:
        """Handle a request.

        Raises:
            Refused: nothing was sent.
        """
        options = Options.of(request)
        pipeline = self._pipelines.open(request.path_params["pipeline"], request.headers.get("authorization"))
        if self._sink.busy:
            raise unavailable("buffer_full", "the queue to Kafka is nearly full; send again later", FULL_SECONDS)
        deadline: Deadline = request.state.deadline
        try:
            with self._memory.hold() as held:
                body = await read_body(request, held)
                events = split(body, request.headers)
                metrics.INGEST_BYTES.labels(pipeline.name).inc(len(body))
                metrics.INGEST_BATCH_EVENTS.observe(len(events.values))
                make = partial(self._take, pipeline, events, options, deadline)
                found = await self._answer(request, pipeline.name, body, make)
        except ClientDisconnect:
            return Response(status_code=400)  # nobody hears it, and nothing was sent
        return Response(found.body, found.status, found.headers, media_type=found.media_type)

    async def _answer(
        self, request: Request, pipeline: str, body: bytes, make: Callable[[], Awaitable[Answer]]
    ) -> Answer:
        key = request.headers.get("idempotency-key")
        if key is None:
            return await make()
        query = "&".join(sorted(request.url.query.split("&")))
        parts = (query, request.headers.get("content-type", ""), request.headers.get("ce-id", ""))
        return await self._replays.answer(pipeline, key, fingerprint(body, *parts), make)

    async def _take(self, pipeline: Pipeline, events: Events, options: Options, deadline: Deadline) -> Answer:
        """Judge the events, send them, and say what became of them."""
        count = len(events.values)
        try:
            quota = self._quota.take(pipeline.name, count)
        except Refused:
            pipeline.count({results.REJECTED: count})
            raise
        records = pipeline.judge.judge(events.values, int(time.time() * 1000))
        if records.invalid and not options.accept_partial:
            pipeline.count({results.REJECTED: count})
            found = refusal(Outcome(records, Delivery(), events.ids))
        else:
            found = await self._send(pipeline, records, events, options, deadline)
        return replace(found, headers={**found.headers, **quota}) if quota else found

    async def _send(
        self, pipeline: Pipeline, records: Records, events: Events, options: Options, deadline: Deadline
    ) -> Answer:
        topic, places = pipeline.config.events_topic, options.everything and options.wait
        try:
            pending = begin(self._sink, topic, records, places=places)
        except Refused:
            pipeline.count({results.RETRY: len(records.values)})
            raise
        if not options.wait:
            known = Outcome(records, replace(pending.delivery), events.ids)
            found = answer(known, wait=False, everything=options.everything)
            self._see_through(pipeline, records, pending)
            return found
        try:
            delivery = await finish(self._sink, topic, records, pending, places=places, deadline=deadline)
        except TimeoutError:
            pipeline.count({results.RETRY: len(records.values)})
            detail = "Kafka has not acknowledged the events in time, though it may yet; send them again later"
            raise unavailable("not_acknowledged", detail, FULL_SECONDS, retry=len(records.values)) from None
        outcome = Outcome(records, delivery, events.ids)
        pipeline.count(outcome.counts)
        return answer(outcome, wait=True, everything=options.everything)

    def _see_through(self, pipeline: Pipeline, records: Records, pending: Pending) -> None:
        """Attend to records whose sender did not want to wait."""

        async def attend() -> None:
            deadline = Deadline.after(self._sink.publish_seconds + FULL_SECONDS)
            topic = pipeline.config.events_topic
            delivery = await finish(self._sink, topic, records, pending, places=False, deadline=deadline)
            pipeline.count(Outcome(records, delivery).counts)
            for error in list(delivery.failed.values())[:1]:
                lost = len(delivery.failed)
                log.error("%d events of %s, not waited for, could not be written: %s", lost, pipeline.name, error.str())

        task = asyncio.ensure_future(attend())
        self._unanswered.add(task)
        task.add_done_callback(self._unanswered.discard)

    async def close(self, seconds: float) -> None:
        """See through what nobody waits for, for so long at most."""
        if self._unanswered:
            await asyncio.wait(self._unanswered, timeout=seconds)
