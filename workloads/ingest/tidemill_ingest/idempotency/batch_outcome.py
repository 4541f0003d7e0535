"""The known outcome of a batch with an Idempotency-Key."""

from __future__ import annotations

import msgspec
from confluent_kafka import KafkaError

from tidemill_contract.events.decoder import InvalidEvent, Reason
from tidemill_ingest.kafka.outcomes import Delivery
from tidemill_ingest.records import Records
from tidemill_ingest.results import Outcome

MAX_BYTES = 64 * 1024
"""The maximum size in bytes of an encoded outcome. A larger outcome is stored without offsets and details."""
_FIELD_CHARACTERS = 64


class BatchOutcome(msgspec.Struct, frozen=True, array_like=True):
    """The outcome of a batch.

    Attributes:
        total: the number of events in the batch.
        invalid: [reason, field, detail] of each invalid event, by the event's index in the batch.
        failed: the Kafka error code of each event that must be sent again, by the event's index.
        offsets: [partition, offset] of each written event, by the event's index, if requested.
        unsure: whether an event may be written twice.
    """

    total: int
    invalid: dict[int, tuple[str, str | None, str]] = {}
    failed: dict[int, int] = {}
    offsets: dict[int, tuple[int, int]] = {}
    unsure: bool = False

    @property
    def nothing_written(self) -> bool:
        """Whether it is certain that no event was written."""
        return len(self.failed) == self.total and not self.unsure

    def to_outcome(self, ids: list[str | None] | None) -> Outcome:
        """Return the outcome in the form that `results.answer` takes."""
        records = Records([b""] * self.total, None, {}, {i: _invalid_event(*row) for i, row in self.invalid.items()})
        failed = {index: KafkaError(code) for index, code in self.failed.items()}
        return Outcome(records, Delivery(failed, dict(self.offsets)), ids)


def _invalid_event(reason: str, field: str | None, detail: str) -> InvalidEvent:
    return InvalidEvent(Reason(reason), field, detail)


def merge(earlier: BatchOutcome | None, indexes: list[int], records: Records, delivery: Delivery) -> BatchOutcome:
    """Return the outcome of a batch: the outcome of earlier attempts, updated by a new attempt.

    `indexes` lists the events that the new attempt has sent.

    Args:
        earlier: the known outcome before the attempt, or None if this was the first attempt.
        indexes: the index in the batch for each record of this attempt.
        records: the records that were sent in this attempt.
        delivery: the outcome of the delivery of these records.
    """
    invalid = {} if earlier is None else {i: row for i, row in earlier.invalid.items() if i not in earlier.failed}
    offsets = {} if earlier is None else dict(earlier.offsets)
    invalid |= {indexes[i]: (str(v.reason), v.field, v.detail) for i, v in records.invalid.items()}
    offsets |= {indexes[i]: offset for i, offset in delivery.offsets.items()}
    return BatchOutcome(
        total=len(indexes) if earlier is None else earlier.total,
        invalid=invalid,
        failed={indexes[i]: error.code() for i, error in delivery.failed.items()},
        offsets=offsets,
        unsure=delivery.unsure or (earlier is not None and earlier.unsure),
    )


def assume_lost(earlier: BatchOutcome | None, total: int) -> BatchOutcome:
    """Return the assumed outcome of a batch.

    Ingest's task or process for the batch ended before the outcome was known.
    """
    if earlier is not None:
        return msgspec.structs.replace(earlier, unsure=True)
    return BatchOutcome(total, failed=dict.fromkeys(range(total), KafkaError._PURGE_INFLIGHT), unsure=True)


def bounded(outcome: BatchOutcome) -> BatchOutcome:
    """Return the outcome. If the encoded outcome exceeds MAX_BYTES, leave out offsets and details."""
    if len(msgspec.msgpack.encode(outcome)) <= MAX_BYTES:
        return outcome
    invalid = {
        i: (reason, field and field[:_FIELD_CHARACTERS], "") for i, (reason, field, _) in outcome.invalid.items()
    }
    return msgspec.structs.replace(outcome, offsets={}, invalid=invalid)
