"""Tests of refused events: ingest and the processor give the same reasons, and forged marks have no effect."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill_contract.events.decoder import QUARANTINE_PREFIX, EventDecoder, Reason
from tidemill_contract.resource.spec import PipelineSpec
from tidemill_contract.runtime import AggregationRef, PipelineConfig
from tidemill_ingest.records import RecordBuilder
from tidemill_processor.batches.batch import Batch
from tidemill_processor.batches.reader import BatchReader

NOW = 1_795_800_000_000
SPEC = PipelineSpec.model_validate(
    {
        "source": {
            "fields": [
                {"name": "ts", "type": "timestamp"},
                {"name": "k", "type": "string", "required": True},
                {"name": "v", "type": "number"},
                {"name": "i", "type": "integer"},
            ],
            "eventTime": {"field": "ts", "maxFuture": "1h"},
        },
        "aggregations": [
            {
                "name": "a",
                "groupBy": ["k"],
                "window": {"type": "tumbling", "size": "1m"},
                "metrics": [{"name": "n", "function": "count"}],
            }
        ],
    }
)
CONFIG = PipelineConfig(
    namespace="tests", name="marks", generation=1, spec=SPEC, aggregations=(AggregationRef(name="a"),)
)
READER = BatchReader(SPEC)


class Record:
    """A Kafka record."""

    def __init__(self, value: bytes | None, headers: Sequence[tuple[str, bytes]] = (), at: int = NOW) -> None:
        self._value, self._headers, self._at = value, list(headers), at

    def key(self) -> bytes | None:
        return None

    def value(self) -> bytes | None:
        return self._value

    def partition(self) -> int:
        return 0

    def offset(self) -> int:
        return 0

    def timestamp(self) -> tuple[int, int]:
        return 2, self._at

    def headers(self) -> list[tuple[str, bytes]] | None:
        return self._headers or None


def read(*records: Record, now: int = NOW) -> Batch:
    return READER.read(records, now)


def event(**members: Any) -> bytes:
    return json.dumps({"ts": NOW, "k": "a", **members}).encode()


RAWS = [
    event(), event(i=200.0), event(ts="2026-11-27"), event(v="12,5"), event(i=200.5), event(k=None), event(k="a\0"),
    event(k="x" * 2000), event(ts=NOW // 1000), event(ts=NOW + 3_600_001), event(ts=-1), event(i=1e300), b"", b"{",
    b"[1]", b"\x00\x00\x00\x00\x2a" + event(), b"\x00", b"\x1f\x8b\x08", b'{"v": NaN}', event(pad="x" * 1_100_000),
    b'{"schema": {}, "payload": {}}',
]  # fmt: skip


@given(st.lists(st.sampled_from(RAWS) | st.binary(max_size=20), min_size=1, max_size=6))
def test_a_dead_letter_has_the_reason_that_ingest_gave(raws: list[bytes]) -> None:
    """Field, detail and bytes are equal too, also if the processor reads the event a day later."""
    built = RecordBuilder(CONFIG).build(raws, NOW)
    for index, raw in enumerate(raws):
        batch = read(Record(built.values[index], built.headers.get(index, ())), now=NOW + 86_400_000)
        verdict = built.invalid.get(index)
        assert batch.frame.height == (verdict is None)
        if verdict is None:
            assert batch.dead_letters == ()
            continue
        (letter,) = batch.dead_letters
        assert (letter.reason, letter.field) == (verdict.reason, verdict.field)
        assert letter.detail == verdict.detail[:500].replace("\0", "\\0")
        assert letter.value == raw[:65536]


@given(st.lists(st.sampled_from(RAWS) | st.binary(max_size=20), min_size=1, max_size=6))
def test_ingest_and_the_processor_refuse_events_for_the_same_reasons(raws: list[bytes]) -> None:
    built = RecordBuilder(CONFIG).build(raws, NOW)
    batch = read(*map(Record, raws))
    direct = [(letter.reason, letter.field, letter.detail) for letter in batch.dead_letters]
    assert direct == [(v.reason, v.field, v.detail.replace("\0", "\\0")) for v in built.invalid.values()]


FORGED = [
    ("no headers", event(), [], "not_json", "schema"),
    ("an unknown reason", event(), [("reason", b"evil")], "not_json", "schema"),
    ("a reason that decoders never give", b"{", [("reason", b"late")], "not_json", ""),
    ("a valid event", event(), [("reason", b"mistyped")], "not_json", "are a valid event"),
    ("too early", event(), [("reason", b"too_far_in_the_future")], "too_far_in_the_future", "refused by ingest"),
    ("an invalid event", event(v="1"), [("reason", b"mistyped"), ("field", b"v")], "mistyped", "got string"),
    ("an older ingest", b"{", [("reason", b"too_large")], "too_large", "refused by ingest"),
    ("headers that are no text", b"{", [("reason", b"\xff"), ("field", b"\0")], "not_json", ""),
    ("a header without a value", b"{", [("reason", None)], "not_json", ""),
]  # fmt: skip


@pytest.mark.parametrize(("case", "value", "headers", "reason", "detail"), FORGED, ids=[row[0] for row in FORGED])
def test_a_forged_mark_gives_a_dead_letter_of_its_own_record(
    case: str, value: bytes, headers: list[Any], reason: str, detail: str
) -> None:
    """Other records of the batch count, and the reason is always a known reason."""
    batch = read(Record(event()), Record(QUARANTINE_PREFIX + value, headers), Record(event()))
    assert batch.frame.height == 2
    (letter,) = batch.dead_letters
    assert letter.reason == reason
    assert detail in str(letter.detail)


@given(
    st.binary(max_size=30).map(lambda b: QUARANTINE_PREFIX + b) | st.just(QUARANTINE_PREFIX + event()),
    st.lists(st.tuples(st.sampled_from(["reason", "field", "detail"]), st.none() | st.binary(max_size=600))),
)
def test_any_headers_give_a_known_reason_and_a_bounded_detail(value: bytes, headers: list[Any]) -> None:
    (letter,) = read(Record(value, headers)).dead_letters
    assert letter.reason in set(Reason)
    assert "\0" not in f"{letter.field}{letter.detail}"
    assert len(letter.detail or "") <= 1000


def test_the_dead_letter_of_a_tombstone_names_the_tombstone() -> None:
    batch = read(Record(event()), Record(None), Record(b""))
    assert batch.frame.height == 1
    assert [letter.reason for letter in batch.dead_letters] == ["not_json", "not_json"]
    assert "tombstone" in str(batch.dead_letters[0].detail)
    assert "tombstone" not in str(batch.dead_letters[1].detail)


def test_an_event_that_was_too_early_at_its_arrival_stays_refused() -> None:
    """A day later, the time of the event is no longer in the future."""
    early = event(ts=NOW + 7_200_000)
    built = RecordBuilder(CONFIG).build([early], NOW)
    (letter,) = read(Record(built.values[0], built.headers[0]), now=NOW + 86_400_000).dead_letters
    assert letter.reason == "too_far_in_the_future"
    assert EventDecoder(SPEC).refusal(early, NOW + 86_400_000) is None
