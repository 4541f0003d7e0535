"""Tests of plain JSON events: which are valid, the reasons of those that are not, and decoding in batches."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill_contract.events.decoder import QUARANTINE_PREFIX, EventDecoder, InvalidEvent, Reason
from tidemill_contract.events.fields import MAX_EVENT_BYTES
from tidemill_contract.resource.spec import PipelineSpec

NOW = 1_700_000_000_000


def spec(*, strict: bool = False) -> PipelineSpec:
    return PipelineSpec.model_validate(
        {
            "source": {
                "fields": [
                    {"name": "ts", "type": "timestamp", "required": True},
                    {"name": "k", "type": "string"},
                    {"name": "note", "type": "string"},
                    {"name": "shop", "type": "string"},
                    {"name": "i", "type": "integer"},
                    {"name": "x", "type": "number"},
                    {"name": "b", "type": "boolean"},
                    {"name": "seen", "type": "timestamp"},
                    {"name": "must", "type": "string", "required": True},
                ],
                "strict": strict,
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
            "anomalies": [{"name": "odd", "field": "x", "groupBy": ["shop"]}],
        }
    )


DECODER, EXACT = EventDecoder(spec()), EventDecoder(spec(), exact=True)


def event(**members: Any) -> bytes:
    return json.dumps({"ts": NOW, "must": "m", **members}).encode()


VALID = [
    ("a plain event", event(k="a", i=1, x=1.5, b=True)),
    ("optional fields are absent or null", event(k=None, i=None)),
    ("an integer as a number", event(x=3)),
    ("unknown members are ignored", event(other={"deep": [1]})),
    ("the greatest 64-bit integer", event(i=2**63 - 1)),
    ("the least 64-bit integer", event(i=-(2**63))),
    ("an RFC 3339 time with an offset", event(ts="2023-11-14T23:13:20+01:00")),
    ("a time at the limit of maxFuture", event(ts=NOW + 3_600_000)),
    ("a long string outside the group columns", event(note="x" * 5000)),
    ("a group key of exactly 1 KiB", event(k="x" * 1024)),
    ("an escaped backslash before u0000 is no NUL", b'{"ts": 1700000000000, "must": "a\\\\u0000"}'),
    ("text beyond ASCII", event(k="Zürich ✈")),
    ("a whole float as an integer", event(i=200.0)),
    ("an exponent as an integer", b'{"ts": 1700000000000, "must": "m", "i": 2e2}'),
    ("a whole float as a time", event(ts=float(NOW))),
    ("a date alone", event(ts="2023-11-14", seen="2023-11-14")),
    ("more digits than microseconds", event(ts="2023-11-14T22:13:20.123456789Z")),
    ("the last moment of the year 9999", event(seen="9999-12-31T23:59:59.9999999Z")),
    ("milliseconds before 1970", event(seen=-631_152_000_000)),
    ("a text as a time in 1970", event(seen="1970-01-21T10:00:00Z")),
]

INVALID = [
    ("not JSON", b"hello", Reason.NOT_JSON, None),
    ("nothing", b"", Reason.NOT_JSON, None),
    ("two values", event() + event(), Reason.NOT_JSON, None),
    ("NaN is not JSON", b'{"ts": 1700000000000, "must": "m", "x": NaN}', Reason.NOT_JSON, None),
    ("a lone surrogate", b'{"ts": 1700000000000, "must": "m", "k": "\\ud800"}', Reason.NOT_JSON, None),
    ("bytes that are not UTF-8", b'{"ts": 1700000000000, "must": "m", "k": "\xff"}', Reason.NOT_JSON, None),
    ("nested beyond reason", b'{"ts": 1, "must": "m", "o": ' + b"[" * 9000 + b"]" * 9000 + b"}", Reason.NOT_JSON, None),
    ("an event that ingest refused", QUARANTINE_PREFIX + event(), Reason.NOT_JSON, None),
    ("an array", b"[1]", Reason.NOT_AN_OBJECT, None),
    ("null", b"null", Reason.NOT_AN_OBJECT, None),
    ("a required field is missing", b'{"ts": 1700000000000}', Reason.MISSING_FIELD, "must"),
    ("a required field is null", event(must=None), Reason.MISSING_FIELD, "must"),
    ("the event time is null", event(ts=None), Reason.MISSING_FIELD, "ts"),
    ("seconds", event(ts=NOW // 1000), Reason.OUT_OF_RANGE, "ts"),
    ("seconds in another field", event(seen=4_102_444_800), Reason.OUT_OF_RANGE, "seen"),
    ("seconds as a float", event(ts=NOW / 1000), Reason.OUT_OF_RANGE, "ts"),
    ("microseconds", event(ts=NOW * 1000), Reason.OUT_OF_RANGE, "ts"),
    ("a float beyond 64 bits for an integer", event(i=1e300), Reason.OUT_OF_RANGE, "i"),
    (
        "a float just beyond 64 bits",
        b'{"ts": 1700000000000, "must": "m", "i": 9223372036854775808.0}',
        Reason.OUT_OF_RANGE,
        "i",
    ),
    ("no JSON after a mistyped value", b'{"ts": 1700000000000, "i": "x", "must": "m"', Reason.NOT_JSON, None),
    ("a word as a time", event(ts="now"), Reason.MISTYPED, "ts"),
    ("a fraction of a millisecond as a number", event(ts=NOW + 0.5), Reason.MISTYPED, "ts"),
    ("the event time is missing", b'{"must": "m"}', Reason.MISSING_FIELD, "ts"),
    ("a number as a string", event(k=3), Reason.MISTYPED, "k"),
    ("a string as a number", event(x="3"), Reason.MISTYPED, "x"),
    ("a fraction as an integer", event(i=1.5), Reason.MISTYPED, "i"),
    ("a string as a boolean", event(b="true"), Reason.MISTYPED, "b"),
    ("an integer beyond 64 bits", event(i=2**63), Reason.OUT_OF_RANGE, "i"),
    ("a number beyond a double", b'{"ts": 1700000000000, "must": "m", "x": 1e999}', Reason.OUT_OF_RANGE, "x"),
    ("a NUL character", event(k="a\0b"), Reason.BAD_STRING, "k"),
    ("a group key of 3 kB", event(k="x" * 3000), Reason.KEY_TOO_LONG, "k"),
    ("a group key of 3 kB in an anomaly rule", event(shop="x" * 3000), Reason.KEY_TOO_LONG, "shop"),
    ("a time without an offset", event(ts="2023-11-14T22:13:20"), Reason.MISTYPED, "ts"),
    ("the year 10000", event(ts="10000-01-01T00:00:00Z"), Reason.OUT_OF_RANGE, "ts"),
    ("the year 10000 in another field", event(seen=253_402_300_800_000), Reason.OUT_OF_RANGE, "seen"),
    ("before 1970", event(ts=-1), Reason.TOO_OLD, "ts"),
    ("beyond maxFuture", event(ts=NOW + 3_600_001), Reason.TOO_FAR_IN_THE_FUTURE, "ts"),
    ("larger than the limit of an event", event(note="x" * MAX_EVENT_BYTES), Reason.TOO_LARGE, None),
]


@pytest.mark.parametrize(("reason", "raw"), VALID, ids=[reason for reason, _ in VALID])
def test_a_valid_event_is_decoded_equally_alone_and_in_a_batch(reason: str, raw: bytes) -> None:
    decoded = DECODER.decode(raw, NOW)
    assert decoded.must in ("m", "a\\u0000")
    assert isinstance(decoded.ts, int)
    assert DECODER.decode_batch([raw], NOW) == ([decoded], {})


@pytest.mark.parametrize(("reason", "raw", "expected", "field"), INVALID, ids=[row[0] for row in INVALID])
def test_an_invalid_event_is_refused_with_its_reason_and_field(
    reason: str, raw: bytes, expected: Reason, field: str | None
) -> None:
    with pytest.raises(InvalidEvent) as caught:
        DECODER.decode(raw, NOW)
    assert (expected, field) == (caught.value.reason, caught.value.field)
    assert caught.value.detail


def test_a_strict_source_refuses_unknown_members_by_name() -> None:
    with pytest.raises(InvalidEvent) as caught:
        EventDecoder(spec(strict=True)).decode(event(stray=1), NOW)
    assert (caught.value.reason, caught.value.field) == (Reason.UNKNOWN_FIELD, "stray")


def test_times_in_every_notation_become_epoch_milliseconds() -> None:
    assert DECODER.decode(event(ts="2023-11-14T22:13:20Z"), NOW).ts == NOW
    assert DECODER.decode(event(ts="2023-11-14T23:13:20.250+01:00"), NOW).ts == NOW + 250


HOSTILE = st.sampled_from([raw for _, raw in VALID] + [raw for _, raw, _, _ in INVALID if len(raw) < 20_000])
MEMBERS = st.dictionaries(
    st.sampled_from(["k", "note", "i", "x", "b", "ts", "seen", "must", "z"]),
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.integers(NOW // 1000 - 5, NOW // 1000 + 5)
    | st.floats()
    | st.integers(-300, 300).map(float)
    | st.sampled_from(
        [
            "2023-11-14",
            "2023-11-14T22:13:20.9999999Z",
            "2023-11-14T22:13:20.123000000+01:00",
            "2023-11-14T22:13:60Z",
            "9999-12-31T23:59:59.9999999Z",
            "0001-01-01T00:00:00+01:00",
            "1969-12-31T23:59:59.9999999Z",
            NOW + 3_600_000,
        ]
    )
    | st.text(max_size=5)
    | st.lists(st.integers(), max_size=2),
)


@given(
    st.lists(HOSTILE | MEMBERS.map(lambda m: event(**m)) | st.binary(max_size=30), max_size=12)
    | st.lists(MEMBERS.map(lambda m: event(**{k: v for k, v in m.items() if k in ("ts", "seen")})), max_size=4),
    st.booleans(),
)
def test_random_events_get_the_same_values_and_reasons_alone_and_in_a_batch(raws: list[bytes], exact: bool) -> None:
    decoder = EXACT if exact else DECODER
    decoded = decoder.decode_all(raws, NOW)
    events, errors = decoded.events, decoded.invalid
    assert len(raws) == len(events)
    if decoded.micros is not None:
        single = [(EXACT.decode_all([raw], NOW).micros or [0])[0] for raw in raws]
        assert single == decoded.micros
    for index, raw in enumerate(raws):
        if index in errors:
            with pytest.raises(InvalidEvent) as error:
                decoder.decode(raw, NOW)
            assert events[index] is None
            assert str(error.value) == str(errors[index])
            assert error.value.field == errors[index].field
        else:
            assert decoder.decode(raw, NOW) == events[index]


def test_events_of_large_batches_get_the_same_values_and_reasons_as_alone() -> None:
    """Groups of usual events in a batch are read together, before, between and after unusual events."""
    rnd = random.Random(5)
    hostile = [raw for _, raw in VALID] + [raw for _, raw, _, _ in INVALID if len(raw) < 20_000]
    texts = [event(ts=f"2023-11-14T22:13:20.{digits}Z") for digits in ("5", "123456", "1239999", "9999999")]
    long = [event(note="x" * 1500), event(k="x" * 1024, note="y" * 500), event(k="ü" * 500, note="y" * 500)]
    for odd in (0, 1, 3, 40):
        raws = [rnd.choice([event(k="a", i=i), *texts, *long]) for i in range(300)]
        for _ in range(odd):
            raws[rnd.randrange(300)] = rnd.choice(hostile)
        decoded, single = EXACT.decode_all(raws, NOW), [EXACT.decode_all([raw], NOW) for raw in raws]
        assert decoded.events == [separate.events[0] for separate in single]
        errors = {i: str(separate.invalid[0]) for i, separate in enumerate(single) if separate.invalid}
        assert {i: str(error) for i, error in decoded.invalid.items()} == errors
        assert decoded.micros == [(separate.micros or [0])[0] for separate in single]
