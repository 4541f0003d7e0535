"""Builds the HTTP answer to a request with events: a status code, counts and rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
from confluent_kafka import KafkaError
from starlette.responses import Response

from tidemill_chassis.web.asgi import PROBLEM_TYPE, problem_body
from tidemill_chassis.web.problems import retry_after
from tidemill_ingest.kafka.outcomes import Delivery
from tidemill_ingest.records import Records

ACCEPTED, QUARANTINED, RETRY, REJECTED = "accepted", "quarantined", "retry", "rejected"
RETRY_SECONDS = 1.0


class Row(msgspec.Struct, kw_only=True, omit_defaults=True):
    """The result of one event."""

    index: int
    id: str | None = None
    status: str
    code: str | None = None
    field: str | None = None
    partition: int | None = None
    offset: int | None = None


@dataclass(frozen=True)
class Answer:
    """An HTTP answer. `final` is whether a repeated request gets the same answer."""

    status: int
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)
    media_type: str = "application/json"
    final: bool = True

    def response(self) -> Response:
        """Return the HTTP answer."""
        return Response(self.body, self.status, self.headers, media_type=self.media_type)


@dataclass(frozen=True)
class Outcome:
    """The records of a request, and the outcome of their delivery.

    Attributes:
        delivery: the outcome of the delivery, empty for a client that does not wait (`wait=false`).
        ids: the ids that the sender has given to the events, or None without ids.
    """

    records: Records
    delivery: Delivery
    ids: Sequence[str | None] | None = None

    @property
    def counts(self) -> dict[str, int]:
        """The number of events by status."""
        failed, invalid = self.delivery.failed, self.records.invalid
        quarantined = len(invalid) if not failed else sum(index not in failed for index in invalid)
        total = len(self.records.values)
        return {ACCEPTED: total - len(failed) - quarantined, QUARANTINED: quarantined, RETRY: len(failed)}

    def rows(self, *, all_rows: bool) -> list[Row]:
        """Return a row for each event that is not accepted. If `all_rows` is true, accepted events get rows too."""
        if all_rows:
            return [self._row(index) for index in range(len(self.records.values))]
        return [self._row(index) for index in sorted({*self.records.invalid, *self.delivery.failed})]

    def _row(self, index: int) -> Row:
        event_id = self.ids[index] if self.ids is not None else None
        error, invalid_event = self.delivery.failed.get(index), self.records.invalid.get(index)
        if error is not None:
            return Row(index=index, id=event_id, status=RETRY, code=error_code(error))
        partition, offset = self.delivery.offsets.get(index, (None, None))
        if invalid_event is not None:
            return Row(
                index=index, id=event_id, status=QUARANTINED, code=str(invalid_event.reason), field=invalid_event.field,
                partition=partition, offset=offset,
            )  # fmt: skip
        return Row(index=index, id=event_id, status=ACCEPTED, partition=partition, offset=offset)


def error_code(error: KafkaError) -> str:
    """Return the code of a Kafka error for a row, such as `kafka_msg_timed_out`."""
    return f"kafka_{error.name().strip('_').lower()}"


def answer(outcome: Outcome, *, wait: bool, all_rows: bool, is_webhook: bool = False) -> Answer:
    """Return the HTTP answer to a request whose records were sent to Kafka.

    Args:
        outcome: the records and their delivery.
        wait: whether the client waits for the delivery.
        all_rows: whether the answer has a row for each event, or only for events that are not accepted.
        is_webhook: whether this is a webhook's signed request. A webhook gets status 200 if Kafka has all events, or
            else 503.
    """
    counts = outcome.counts
    total = len(outcome.records.values)
    body = {**counts, "results": outcome.rows(all_rows=all_rows)}
    if counts[RETRY] == total or (is_webhook and counts[RETRY]):
        detail = f"Kafka acknowledged {total - counts[RETRY] or 'none'} of the events; send them again later"
        return _problem(503, "kafka_unavailable", detail, body, headers=retry_after(RETRY_SECONDS), final=False)
    if counts[QUARANTINED] == total and not is_webhook:
        return _problem(422, "no_valid_event", "no event is valid; the dead letters have the reasons", body)
    status = 200 if counts[ACCEPTED] == total or is_webhook else 207
    if counts[RETRY]:
        headers = {"cache-control": "no-store", **retry_after(RETRY_SECONDS)}
        return Answer(status, msgspec.json.encode(body), headers, final=False)
    return Answer(status if wait else 202, msgspec.json.encode(body), {"cache-control": "no-store"})


def refusal(outcome: Outcome) -> Answer:
    """Return the answer to a request with invalid events, if `accept_partial` is false."""
    rows = [
        Row(index=row.index, id=row.id, status=REJECTED, code=row.code, field=row.field)
        for row in outcome.rows(all_rows=False)
    ]
    body = {ACCEPTED: 0, QUARANTINED: 0, RETRY: 0, "results": rows}
    detail = (
        f"{len(rows)} events are invalid and accept_partial is false: nothing was sent; correct or remove these events"
    )
    return _problem(422, "batch_rejected", detail, body)


def _problem(
    status: int,
    code: str,
    detail: str,
    body: dict[str, Any],
    *,
    headers: dict[str, str] | None = None,
    final: bool = True,
) -> Answer:
    text = problem_body(status, code, detail, **body)
    return Answer(status, text, {"cache-control": "no-store", **(headers or {})}, PROBLEM_TYPE, final=final)
