"""Tests of replays: which events of a batch they store, and at which rate they read."""

from __future__ import annotations

import time

import pytest

from kafka_records import RawRecord
from tidemill_contract.resource.spec import PipelineSpec
from tidemill_processor.batches.batch import OFFSET, PARTITION, Batch
from tidemill_processor.batches.reader import BatchReader
from tidemill_processor.replay import Throttle

NOW = 1_700_000_000_000
SPEC = PipelineSpec.model_validate({
    "source": {
        "fields": [{"name": "ts", "type": "timestamp", "required": True}, {"name": "n", "type": "integer"}],
        "eventTime": {"field": "ts"},
    },
    "transform": {"filter": "n >= 0"},
    "aggregations": [
        {"name": "all", "window": {"type": "tumbling", "size": "1m"}, "metrics": [{"name": "c", "function": "count"}]}
    ],
})  # fmt: skip


def batch() -> Batch:
    """Return offsets 10 to 15 of two partitions: valid, filtered and invalid events in turn."""
    bodies = [b'{"ts": %d, "n": 1}' % NOW, b'{"ts": %d, "n": -1}' % NOW, b"no JSON"]
    records = [RawRecord(p, offset, bodies[offset % 3]) for offset in range(10, 16) for p in (0, 1)]
    return BatchReader(SPEC, offsets=True).read(records, NOW)


def offsets(batch: Batch) -> list[tuple[int, int]]:
    return sorted(batch.frame.select(PARTITION, OFFSET).iter_rows())


def test_a_batch_that_ends_before_the_limits_is_not_cut() -> None:
    whole = batch()
    assert whole.before_offsets({0: 16, 1: 16}) is whole
    assert offsets(whole) == [(0, 12), (0, 15), (1, 12), (1, 15)]


CUTS: list[tuple[int, list[int], int, int, int]] = [
    (16, [12, 15], 6, 2, 2),
    (15, [12], 5, 2, 2),
    (12, [], 2, 1, 1),
    (10, [], 0, 0, 0),
]


@pytest.mark.parametrize(("end", "kept", "consumed", "filtered", "invalid"), CUTS)
def test_events_after_the_limit_of_a_partition_do_not_count(
    end: int, kept: list[int], consumed: int, filtered: int, invalid: int
) -> None:
    """The other partition is not cut."""
    cut = batch().before_offsets({0: end, 1: 16})
    assert offsets(cut) == [(0, offset) for offset in kept] + [(1, 12), (1, 15)]
    assert cut.next_offsets == {0: end, 1: 16}
    assert (cut.consumed, cut.filtered) == ({0: consumed, 1: 6}, {0: filtered, 1: 2})
    assert dict(cut.invalid_counts) == {p: n for p, n in ((0, invalid), (1, 2)) if n}


def test_a_rate_limits_the_events_of_a_batch_and_pauses_after_each_batch() -> None:
    """A batch contains at most the events of half a second. Without a rate, there is no limit."""
    pace = Throttle(1_000)
    assert (pace.limit(50_000), Throttle(1).limit(50_000), Throttle(0).limit(50_000)) == (500, 1, 50_000)
    began = time.monotonic()
    for _ in range(3):
        pace.sleep_after(100)
    assert time.monotonic() - began >= 0.28
