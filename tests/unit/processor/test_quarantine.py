"""The way of a refused event from ingest to its dead letter, and what a forged mark can do: nothing."""

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
from tidemill_ingest.records import Judge
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
    """A record as Kafka has it."""

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
def test_the_processor_says_of_an_event_what_ingest_said(raws: list[bytes]) -> None:
    """Reason, field, detail and bytes, also when the processor comes to it a day later."""
    made = Judge(CONFIG).judge(raws, NOW)
    for index, raw in enumerate(raws):
        batch = read(Record(made.values[index], made.headers.get(index, ())), now=NOW + 86_400_000)
        verdict = made.invalid.get(index)
        assert batch.frame.height == (verdict is None)
        if verdict is None:
            assert batch.dead == ()
            continue
        (letter,) = batch.dead
        assert (letter.reason, letter.field) == (verdict.reason, verdict.field)
        assert letter.detail == verdict.detail[:500].replace("\0", "\\0")
        assert letter.value == raw[:65536]


@given(st.lists(st.sampled_from(RAWS) | st.binary(max_size=20), min_size=1, max_size=6))
def test_an_event_gets_one_verdict_over_http_and_from_the_topic(raws: list[bytes]) -> None:
    made = Judge(CONFIG).judge(raws, NOW)
    batch = read(*map(Record, raws))
    direct = [(letter.reason, letter.field, letter.detail) for letter in batch.dead]
    assert direct == [(v.reason, v.field, v.detail.replace("\0", "\\0")) for v in made.invalid.values()]


FORGED = [
    ("no headers", event(), [], "not_json", "schema"),
    ("a reason that there is not", event(), [("reason", b"evil")], "not_json", "schema"),
    ("a reason that no decoder gives", b"{", [("reason", b"late")], "not_json", ""),
    ("a refusal of what is valid", event(), [("reason", b"mistyped")], "not_json", "valid event follows"),
    ("too early then", event(), [("reason", b"too_far_in_the_future")], "too_far_in_the_future", "refused by ingest"),
    ("of what is invalid", event(v="1"), [("reason", b"mistyped"), ("field", b"v")], "mistyped", "got string"),
    ("of an older ingest", b"{", [("reason", b"too_large")], "too_large", "refused by ingest"),
    ("bytes that are no text", b"{", [("reason", b"\xff"), ("field", b"\0")], "not_json", ""),
    ("a header without a value", b"{", [("reason", None)], "not_json", ""),
]  # fmt: skip


@pytest.mark.parametrize(("what", "value", "headers", "reason", "detail"), FORGED, ids=[row[0] for row in FORGED])
def test_a_forged_mark_gives_a_dead_letter_of_its_own_record(
    what: str, value: bytes, headers: list[Any], reason: str, detail: str
) -> None:
    """Its neighbours count, and no text becomes a reason."""
    batch = read(Record(event()), Record(QUARANTINE_PREFIX + value, headers), Record(event()))
    assert batch.frame.height == 2
    (letter,) = batch.dead
    assert letter.reason == reason
    assert detail in str(letter.detail)


@given(
    st.binary(max_size=30).map(lambda b: QUARANTINE_PREFIX + b) | st.just(QUARANTINE_PREFIX + event()),
    st.lists(st.tuples(st.sampled_from(["reason", "field", "detail"]), st.none() | st.binary(max_size=600))),
)
def test_reasons_are_a_closed_set_whatever_headers_say(value: bytes, headers: list[Any]) -> None:
    (letter,) = read(Record(value, headers)).dead
    assert letter.reason in set(Reason)
    assert "\0" not in f"{letter.field}{letter.detail}"
    assert len(letter.detail or "") <= 1000


def test_a_tombstone_is_told_as_such() -> None:
    batch = read(Record(event()), Record(None), Record(b""))
    assert batch.frame.height == 1
    assert [letter.reason for letter in batch.dead] == ["not_json", "not_json"]
    assert "tombstone" in str(batch.dead[0].detail)
    assert "tombstone" not in str(batch.dead[1].detail)


def test_the_verdict_on_a_record_is_that_of_its_time() -> None:
    """What was too far in the future when it came is no valid event a day later."""
    early = event(ts=NOW + 7_200_000)
    made = Judge(CONFIG).judge([early], NOW)
    (letter,) = read(Record(made.values[0], made.headers[0]), now=NOW + 86_400_000).dead
    assert letter.reason == "too_far_in_the_future"
    assert EventDecoder(SPEC).refusal(early, NOW + 86_400_000) is None
