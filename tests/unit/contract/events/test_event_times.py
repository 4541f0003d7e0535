"""Tests of times in events: notations, truncated fractions, and the detection of other units."""

from __future__ import annotations

import datetime as dt
import json
import re
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tidemill_contract.events.decoder import EventDecoder, InvalidEvent, Reason
from tidemill_contract.resource.spec import PipelineSpec

NOW = 1_795_800_000_000  # 2026-11-27T18:40:00Z
EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


def spec() -> PipelineSpec:
    document = {
        "source": {
            "fields": [
                {"name": "ts", "type": "timestamp"},
                {"name": "seen", "type": "timestamp"},
                {"name": "note", "type": "string"},
            ],
            "eventTime": {"field": "ts"},
        },
        "aggregations": [
            {
                "name": "a",
                "window": {"type": "tumbling", "size": "1m"},
                "metrics": [{"name": "n", "function": "count"}],
            }
        ],
    }
    return PipelineSpec.model_validate(document)


DECODER, PLAIN = EventDecoder(spec(), exact=True), EventDecoder(spec())


def ms(text: str) -> int:
    return (dt.datetime.fromisoformat(text) - EPOCH) // dt.timedelta(milliseconds=1)


ACCEPTED = [
    ("2026-11-27T10:00:59Z", "2026-11-27T10:00:59+00:00"),
    ("2026-11-27t10:00:59z", "2026-11-27T10:00:59+00:00"),
    ("2026-11-27 10:00:59Z", "2026-11-27T10:00:59+00:00"),
    ("2026-11-27T11:00:59+01:00", "2026-11-27T10:00:59+00:00"),
    ("2026-11-27T11:00:59+0100", "2026-11-27T10:00:59+00:00"),
    ("2026-11-27T10:00:59-00:00", "2026-11-27T10:00:59+00:00"),
    ("2026-11-27", "2026-11-27T00:00:00+00:00"),
    ("2026-11-27T10:00:59.1Z", "2026-11-27T10:00:59.100+00:00"),
    ("2026-11-27T10:00:59.9999Z", "2026-11-27T10:00:59.999+00:00"),
    ("2026-11-27T10:00:59.9999999Z", "2026-11-27T10:00:59.999+00:00"),
    ("2026-11-27T10:00:59.999999500Z", "2026-11-27T10:00:59.999+00:00"),
    ("2026-11-26T23:59:59.9999999Z", "2026-11-26T23:59:59.999+00:00"),
    ("2026-11-27T10:00:59.12345678901234567890+01:00", "2026-11-27T09:00:59.123+00:00"),
    ("1970-01-21T10:00:00Z", "1970-01-21T10:00:00+00:00"),
]
OTHER = [
    ("1969-12-31T23:59:59.9999999Z", -1),
    ("0001-01-01T00:00:00Z", -62_135_596_800_000),
    ("9999-12-31T23:59:59.9999999999Z", 253_402_300_799_999),
    ("1950-02-03", ms("1950-02-03T00:00:00+00:00")),
    (631_151_999, 631_151_999),
    (4_102_444_801, 4_102_444_801),
    (-1_795_773_600, -1_795_773_600),
    (1_795_773_600_000.0, 1_795_773_600_000),
]
REFUSED = [
    (10**330, Reason.OUT_OF_RANGE, "outside the years 1 to 9999; send a time in these years"),
    (-(10**330), Reason.OUT_OF_RANGE, "outside the years 1 to 9999; send a time in these years"),
    ("2026-11-27T10:00:60Z", Reason.OUT_OF_RANGE, "send :59"),
    ("2026-11-27T24:00:00Z", Reason.OUT_OF_RANGE, "00:00:00 of the next day"),
    ("2026-02-30T10:00:00Z", Reason.OUT_OF_RANGE, "not a valid time"),
    ("0000-01-01T00:00:00Z", Reason.OUT_OF_RANGE, "not a valid time"),
    ("10000-01-01T00:00:00Z", Reason.OUT_OF_RANGE, "not a valid time"),
    ("9999-12-31T23:59:59-01:00", Reason.OUT_OF_RANGE, "years 1 to 9999"),
    ("0001-01-01T00:00:00+01:00", Reason.OUT_OF_RANGE, "years 1 to 9999"),
    ("2026-13-01", Reason.OUT_OF_RANGE, "not a valid time"),
    ("2026-11-27T10:00:00+01", Reason.MISTYPED, "+01:00"),
    ("2026-11-27T10:00Z", Reason.MISTYPED, "send RFC 3339"),
    ("2026-11-27T10:00:00", Reason.MISTYPED, "add the zone"),
    ("27.11.2026", Reason.MISTYPED, "send RFC 3339"),
    ("1795773600000", Reason.MISTYPED, "without quotes"),
    (1_795_773_600_000.5, Reason.MISTYPED, "whole milliseconds"),
    (1_795_773_600.5, Reason.MISTYPED, "in seconds, the value means 2026-11-27"),
    (True, Reason.MISTYPED, "expected timestamp, got boolean true"),
    (
        1_795_773_600,
        Reason.OUT_OF_RANGE,
        "means 1970-01-21 in milliseconds; in seconds, the value means 2026-11-27: send milli",
    ),
    (1_795_773_600.0, Reason.OUT_OF_RANGE, "in seconds, the value means 2026-11-27"),
    (631_152_000, Reason.OUT_OF_RANGE, "in seconds, the value means 1990-01-01"),
    (4_102_444_800, Reason.OUT_OF_RANGE, "in seconds, the value means 2100-01-01"),
    (1_795_773_600_000_000, Reason.OUT_OF_RANGE, "in microseconds, the value means 2026-11-27"),
    (1_795_773_600_000_000_000, Reason.OUT_OF_RANGE, "in nanoseconds, the value means 2026-11-27"),
    (10**30, Reason.OUT_OF_RANGE, "years 1 to 9999"),
]


@pytest.mark.parametrize(("text", "meant"), ACCEPTED)
def test_a_time_in_every_notation_is_read_alone_and_in_a_batch(text: str, meant: str) -> None:
    raw = json.dumps({"ts": text, "seen": text}).encode()
    event = DECODER.decode(raw, NOW)
    assert (event.ts, event.seen) == (ms(meant), ms(meant))
    assert DECODER.decode_batch([raw], NOW) == ([event], {})


@pytest.mark.parametrize(("value", "meant"), OTHER)
def test_a_field_other_than_the_event_time_may_be_in_the_years_1_to_9999(value: Any, meant: int) -> None:
    """The event time must not be before 1970."""
    raw = json.dumps({"ts": NOW, "seen": value}).encode()
    event = DECODER.decode(raw, NOW)
    assert event.seen == meant
    assert DECODER.decode_batch([raw, raw], NOW) == ([event, event], {})


@pytest.mark.parametrize("field", ["ts", "seen"])
@pytest.mark.parametrize(("value", "reason", "detail"), REFUSED)
def test_an_invalid_time_is_refused_with_the_remedy(field: str, value: Any, reason: Reason, detail: str) -> None:
    """The event time and other timestamps are treated equally, alone and in a batch."""
    raw = json.dumps({"ts": NOW, field: value}).encode()
    with pytest.raises(InvalidEvent) as caught:
        DECODER.decode(raw, NOW)
    assert (caught.value.reason, caught.value.field) == (reason, field)
    assert detail in caught.value.detail
    assert str(value).lower()[:59] in caught.value.detail.lower() or isinstance(value, float)
    _, errors = DECODER.decode_batch([b'{"ts": 1795800000000}', raw], NOW)
    assert {i: str(v) for i, v in errors.items()} == {1: str(caught.value)}


def test_the_refusal_of_a_records_time_names_the_unit_that_it_may_have() -> None:
    with pytest.raises(InvalidEvent, match="in microseconds, the value means 2026-11-27"):
        DECODER.times.check_record(1_795_773_600_000_000, NOW)
    with pytest.raises(InvalidEvent, match="in seconds, the value means 2026-11-27"):
        DECODER.times.check_record(1_795_773_600, NOW)


MOMENTS = st.datetimes(dt.datetime(1970, 3, 1), dt.datetime(2026, 11, 27))
DIGITS = st.text("0123456789", max_size=30) | st.integers(1, 30).map(lambda n: "9" * n)
ZONES = st.sampled_from([("Z", 0), ("z", 0), ("+01:00", 60), ("-0830", -510), ("+23:59", 1439)])


def escaped(text: str, which: str) -> str:
    """Return the JSON text with these characters as escapes."""
    return re.sub(f"[{which}]", lambda match: f"\\u{ord(match.group()):04x}", text) if which else text


@given(st.lists(st.tuples(MOMENTS, DIGITS, ZONES, st.sampled_from(["", "9", ".", ":", "0-9.:+"])), min_size=1))
@example([(dt.datetime(2026, 11, 27, 10, 0, 59), "9999999", ("Z", 0), "")])
@example([(dt.datetime(2026, 11, 27, 10, 0, 59), "9999999", ("Z", 0), "9")])
def test_fractions_of_any_number_of_digits_are_truncated(
    times: list[tuple[dt.datetime, str, tuple[str, int], str]],
) -> None:
    """Both decoders truncate to milliseconds and microseconds, for every zone and for escaped characters."""
    raws, expected = [], []
    for moment, digits, (zone, minutes), which in times:
        text = moment.isoformat(timespec="seconds") + (f".{digits}" if digits else "") + zone
        raws.append(f'{{"note": "10:00:59.9999999Z", "ts": "{escaped(text, which)}"}}'.encode())
        start = moment.replace(microsecond=0, tzinfo=dt.UTC) - dt.timedelta(minutes=minutes)
        exact = (start - EPOCH) // dt.timedelta(seconds=1) * 1_000_000 + int(digits.ljust(6, "0")[:6] or 0)
        expected.append(divmod(exact, 1000))
    now = NOW + 86_400_000
    decoded = DECODER.decode_all(raws, now)
    assert decoded.invalid == {}
    assert decoded.micros is not None
    assert list(zip((event.ts for event in decoded.events), decoded.micros, strict=True)) == expected
    assert [event.note for event in decoded.events] == ["10:00:59.9999999Z"] * len(raws)
    plain = PLAIN.decode_all(raws, now)
    assert ([event.ts for event in plain.events], plain.micros) == ([milli for milli, _ in expected], None)
    assert [DECODER.decode(raw, now).ts for raw in raws] == [milli for milli, _ in expected]


@given(st.integers(631_152_000, 4_102_444_800), st.sampled_from(["ts", "seen"]))
def test_a_time_in_seconds_is_never_read_as_milliseconds(seconds: int, field: str) -> None:
    raws = [json.dumps({"ts": NOW}).encode(), json.dumps({"ts": "2026-11-27", field: seconds}).encode()]
    events, errors = DECODER.decode_batch(raws, NOW)
    assert events[1] is None
    assert (errors[1].reason, errors[1].field) == (Reason.OUT_OF_RANGE, field)
    assert f"{seconds} means 1970-0" in errors[1].detail


def test_a_long_text_is_refused_without_a_search_for_remedies() -> None:
    """The patterns of the search would run for hours on this text."""
    refusal = DECODER.refusal(json.dumps({"ts": "T24:60+" * 100_000 + "\n"}).encode(), NOW)
    assert refusal is not None
    assert "send RFC 3339" in refusal.detail
