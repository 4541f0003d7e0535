"""What is known of a batch that came with an Idempotency-Key: enough to answer again, and to go on where it failed."""

from __future__ import annotations

import msgspec
from confluent_kafka import KafkaError

from tidemill_contract.events.decoder import InvalidEvent, Reason
from tidemill_ingest.kafka.sink import Delivery
from tidemill_ingest.records import Records
from tidemill_ingest.results import Outcome

MAX_BYTES = 64 * 1024
"""Of one batch, encoded; beyond it places and details are left out."""
_FIELD_CHARACTERS = 64


class Known(msgspec.Struct, frozen=True, array_like=True):
    """What became of a batch.

    Attributes:
        total: its events.
        invalid: [reason, field, detail] of refused events, by index.
        failed: Kafka's error codes of events that are not acknowledged, by index; they are to be sent again.
        places: [partition, offset] where they were asked for, by index.
        unsure: an event may have been written more often than once, or will be if the failed ones are sent again.
    """

    total: int
    invalid: dict[int, tuple[str, str | None, str]] = {}
    failed: dict[int, int] = {}
    places: dict[int, tuple[int, int]] = {}
    unsure: bool = False

    @property
    def nothing(self) -> bool:
        """Whether no event was written, for sure: the batch may as well never have come."""
        return len(self.failed) == self.total and not self.unsure

    def outcome(self, ids: list[str | None] | None) -> Outcome:
        """The outcome to answer with."""
        records = Records([b""] * self.total, None, {}, {i: _verdict(*row) for i, row in self.invalid.items()})
        failed = {index: KafkaError(code) for index, code in self.failed.items()}
        return Outcome(records, Delivery(failed, dict(self.places)), ids)


def _verdict(reason: str, field: str | None, detail: str) -> InvalidEvent:
    return InvalidEvent(Reason(reason), field, detail)


def merge(before: Known | None, indexes: list[int], records: Records, delivery: Delivery) -> Known:
    """What is known after an attempt.

    Args:
        before: what was known before it; None at the first.
        indexes: places in the batch of the records that were sent in this attempt.
        records: these records.
        delivery: what became of them.
    """
    invalid = {} if before is None else {i: row for i, row in before.invalid.items() if i not in before.failed}
    places = {} if before is None else dict(before.places)
    invalid |= {indexes[i]: (str(v.reason), v.field, v.detail) for i, v in records.invalid.items()}
    places |= {indexes[i]: place for i, place in delivery.places.items()}
    return Known(
        total=len(indexes) if before is None else before.total,
        invalid=invalid,
        failed={indexes[i]: error.code() for i, error in delivery.failed.items()},
        places=places,
        unsure=delivery.unsure or (before is not None and before.unsure),
    )


def lost(before: Known | None, total: int) -> Known:
    """What is known of a batch whose process ended: all that was not acknowledged before may have been written."""
    if before is not None:
        return msgspec.structs.replace(before, unsure=True)
    return Known(total, failed=dict.fromkeys(range(total), KafkaError._PURGE_INFLIGHT), unsure=True)


def bounded(known: Known) -> Known:
    """The same without what is not needed, if it is large."""
    if len(msgspec.msgpack.encode(known)) <= MAX_BYTES:
        return known
    invalid = {i: (reason, field and field[:_FIELD_CHARACTERS], "") for i, (reason, field, _) in known.invalid.items()}
    return msgspec.structs.replace(known, places={}, invalid=invalid)
