"""Tests of timestamps in other formats: counts of units, patterns, and local times of a zone."""

from __future__ import annotations

import datetime as dt
import json
import math
import tracemalloc
from contextlib import nullcontext
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidemill_contract.events.decoder import EventDecoder, InvalidEvent, Reason
from tidemill_contract.events.timestamps import TimeFormat
from tidemill_contract.events.types import check_default
from tidemill_contract.resource.source import FieldSpec
from tidemill_contract.resource.spec import PipelineSpec

NOW = 1_700_000_000_000
BERLIN = "Europe/Berlin"


def make_decoder(time: dict[str, Any], *, exact: bool = False, is_event_time: bool = False) -> EventDecoder:
    fields = [{"name": "at", "type": "timestamp", **time}, {"name": "plain", "type": "timestamp"}]
    source = {"fields": fields, "eventTime": {"field": "at"} if is_event_time else {}}
    window = {"type": "tumbling", "size": "1m"}
    metrics = [{"name": "n", "function": "count"}]
    aggregations = [{"name": "a", "window": window, "metrics": metrics}]
    return EventDecoder(PipelineSpec.model_validate({"source": source, "aggregations": aggregations}), exact=exact)


def read(decoder: EventDecoder, text: str) -> int | InvalidEvent | None:
    """Return `at` of this JSON text, or its error. Check that the event is decoded equally alone and in a batch."""
    raw = b'{"at": ' + text.encode() + b', "plain": "2023-11-14T22:13:20Z"}'
    batch = decoder.decode_all([raw], NOW)
    error = decoder.refusal(raw, NOW)
    if error is not None:
        assert batch.invalid[0].detail == error.detail
        return error
    assert not batch.invalid
    event = decoder.decode(raw, NOW)
    value, plain = (decoder.values([event], name)[0] for name in ("at", "plain"))
    assert [decoder.values(batch.events, name) for name in ("at", "plain")] == [[value], [plain]]
    assert plain == NOW
    return value


def ms(text: str) -> int:
    return round(dt.datetime.fromisoformat(text).timestamp() * 1000)


READ: list[tuple[dict[str, Any], str, int | None]] = [
    ({"format": "s"}, "1700000000", NOW),
    ({"format": "s"}, "1700000000.25", NOW + 250),
    ({"format": "s"}, "1.7e9", NOW),
    ({"format": "s"}, '"1700000000"', NOW),
    ({"format": "s"}, '"1700000000.9999999999"', NOW + 999),
    ({"format": "s"}, "1700000000.99999999999999999999", NOW + 999),
    ({"format": "s"}, '"\\u0031.7e+9"', NOW),
    ({"format": "s"}, "-1", -1000),
    ({"format": "s"}, "-0.0001", -1),
    ({"format": "s"}, "null", None),
    ({"format": "s", "default": 1_700_000_000}, "null", NOW),
    ({"format": "ms"}, "1700000000", 1_700_000_000),
    ({"format": "ms"}, "1700000000000.9", NOW),
    ({"format": "us"}, "1700000000000999", NOW),
    ({"format": "us"}, "-1", -1),
    ({"format": "ns"}, "1700000000000999999", NOW),
    ({"format": "ns"}, '"1700000000000000000"', NOW),
    ({"format": "%d.%m.%Y %H:%M"}, '"14.11.2023 22:13"', ms("2023-11-14T22:13:00Z")),
    ({"format": "%d.%m.%Y %H:%M", "zone": BERLIN}, '"14.11.2023 23:13"', ms("2023-11-14T22:13:00Z")),
    ({"format": "%d.%m.%Y %H:%M", "zone": BERLIN}, '"14.07.2023 23:13"', ms("2023-07-14T21:13:00Z")),
    ({"format": "%d/%b/%Y:%H:%M:%S %z", "zone": BERLIN}, '"14/Nov/2023:22:13:20 +0000"', NOW),
    ({"format": "%Y-%m-%d %H:%M:%S.%f"}, '"2023-11-14 22:13:20.1239"', NOW + 123),
    ({"format": "%Y-%m-%d", "zone": BERLIN}, '"2023-11-14"', ms("2023-11-13T23:00:00Z")),
    ({"format": "%Y%m%d"}, "20231114", ms("2023-11-14T00:00:00Z")),
    ({"format": "%Y-%m-%d", "default": "2023-11-14"}, "null", ms("2023-11-14T00:00:00Z")),
    ({"format": "rfc3339"}, '"2023-11-14T22:13:20Z"', NOW),
    ({"zone": BERLIN}, '"2023-11-14T23:13:20"', NOW),
    ({"zone": BERLIN}, '"2023-11-14 23:13:20.1239999999"', NOW + 123),
    ({"zone": BERLIN}, '"2023-11-14T22:13:20Z"', NOW),
    ({"zone": BERLIN}, '"2023-11-14T22:13:19.9999999Z"', NOW - 1),
    ({"zone": BERLIN}, '"2023-11-14"', ms("2023-11-13T23:00:00Z")),
    ({"zone": BERLIN}, "1700000000000", NOW),
    # An hour that a clock change repeats means its first occurrence. Skipped times have the offset before the change.
    ({"zone": BERLIN}, '"2023-10-29T02:30:00"', ms("2023-10-29T00:30:00Z")),
    ({"zone": BERLIN}, '"2023-03-26T02:30:00"', ms("2023-03-26T01:30:00Z")),
]


@pytest.mark.parametrize(("time", "text", "expected"), READ)
def test_a_time_is_read_in_the_format_of_its_field(time: dict[str, Any], text: str, expected: int | None) -> None:
    assert read(make_decoder(time), text) == expected


REFUSED: list[tuple[dict[str, Any], str, Reason, str]] = [
    ({"format": "s"}, '"soon"', Reason.MISTYPED, 'at: expected timestamp as s, got string "soon"; send values in this'),
    ({"format": "s"}, '"NaN"', Reason.MISTYPED, "at: expected timestamp as s, got number NaN"),
    *(
        ({"format": "s"}, f'"{text}"', Reason.MISTYPED, "at: expected timestamp as s, got string ")
        for text in ("1_699_999_999", "\u0661\u0666\u0669\u0669", "+1699999999", "1699999999.", ".5", "01699999999")
    ),
    *(
        ({"format": "s"}, f'"{text}"', Reason.MISTYPED, "at: expected timestamp as s, got string ")
        for text in ("\\n1699999999", "1699999999 ", "\u20031699999999", "\\u20031699999999")
    ),
    ({"format": "s"}, "true", Reason.MISTYPED, "at: expected timestamp as s, got boolean true"),
    ({"format": "s"}, "{}", Reason.MISTYPED, "at: expected timestamp as s, got object; send one value"),
    (
        {"format": "s"}, "1700000000000", Reason.OUT_OF_RANGE,
        "at: 1700000000000 is outside the years 1 to 9999; in milliseconds, the value means 2023-11-14: set",
    ),
    ({"format": "s"}, "1e400", Reason.OUT_OF_RANGE, "at: 1E+400 is outside the years 1 to 9999; send a time"),
    ({"format": "s"}, "1e999999999", Reason.OUT_OF_RANGE, "at: "),
    ({"format": "%d.%m.%Y"}, '"2023-11-14"', Reason.MISTYPED, "at: expected timestamp as %d.%m.%Y, got string"),
    ({"format": "%d.%m.%Y"}, "1.5", Reason.MISTYPED, "at: expected timestamp as %d.%m.%Y, got number 1.5"),
    ({"format": "%d.%m.%Y"}, '"31.02.2023"', Reason.MISTYPED, "at: expected timestamp as %d.%m.%Y, got string"),
    ({"zone": BERLIN}, '"2023-11-14T24:00:00"', Reason.MISTYPED, f"at: expected timestamp as rfc3339 in {BERLIN}, got"),
    *(
        ({"zone": BERLIN}, f'"{text}"', Reason.OUT_OF_RANGE, f"at: {text} is outside the years 1 to 9999; send a time")
        for text in ("0001-01-01", "0001-01-01T00:00:00+05:00", "9999-12-31T23:59:59-05:00")
    ),
    ({"zone": BERLIN}, f"1{'0' * 330}", Reason.OUT_OF_RANGE, "at: 1000"),
    ({"zone": BERLIN}, f"-1{'0' * 330}", Reason.OUT_OF_RANGE, "at: -1000"),
    ({"zone": BERLIN}, "1700000000", Reason.OUT_OF_RANGE, "at: 1700000000 means 1970-01-20 in milliseconds"),
]  # fmt: skip


@pytest.mark.parametrize(("time", "text", "reason", "detail"), REFUSED)
def test_a_time_in_another_format_is_refused(time: dict[str, Any], text: str, reason: Reason, detail: str) -> None:
    error = read(make_decoder(time), text)
    assert isinstance(error, InvalidEvent)
    assert (error.reason, error.field) == (reason, "at")
    assert error.detail.startswith(detail)


VALUES = [(time, json.loads(text), True) for time, text, expected in READ if expected is not None]
VALUES += [(time, json.loads(text), False) for time, text, *_ in REFUSED]


@pytest.mark.parametrize(
    ("time", "value", "valid"),
    [
        *(each for each in VALUES if isinstance(each[1], str | int)),
        ({}, 1_700_000_000, False),
        ({}, NOW, True),
        ({}, 5, True),
        ({}, 10**15, False),
        ({}, 10**330, False),
        ({"from": "header"}, 1_700_000_000, False),
    ],
)
def test_a_default_is_valid_exactly_if_an_event_with_the_value_is_valid(
    time: dict[str, Any], value: Any, valid: bool
) -> None:
    written = {name: member for name, member in time.items() if name != "default"}
    field = FieldSpec.model_validate({"name": "at", "type": "timestamp", **written, "default": value})
    with nullcontext() if valid else pytest.raises(ValueError, match=r"\w: [-\w]"):
        check_default(field)


def test_the_event_time_is_read_in_the_format_of_its_field() -> None:
    decoder = make_decoder({"format": "us"}, exact=True, is_event_time=True)
    raws = [b'{"at": %d}' % (NOW * 1000 + 1234), b'{"at": "%d.7"}' % (NOW * 1000 + 5)]
    batch = decoder.decode_all(raws, NOW)
    assert decoder.values(batch.events, "at") == [NOW + 1, NOW]
    assert batch.micros == [234, 5]
    (error,) = decoder.decode_all([b'{"at": %d}' % (NOW * 10**6)], NOW).invalid.values()
    assert error.reason is Reason.OUT_OF_RANGE
    (error,) = decoder.decode_all([b'{"at": %d}' % (2 * NOW * 1000)], NOW).invalid.values()
    assert error.reason is Reason.TOO_FAR_IN_THE_FUTURE
    (error,) = decoder.decode_all([b'{"at": -5}'], NOW).invalid.values()
    assert error.reason is Reason.TOO_OLD
    (error,) = decoder.decode_all([b'{"at": null}'], NOW).invalid.values()
    assert error.reason is Reason.MISSING_FIELD


@settings(max_examples=300)
@given(
    st.sampled_from(["s", "ms", "us", "ns"]),
    st.decimals(allow_nan=False, allow_infinity=False, min_value=-(10**12), max_value=10**12, places=12),
)
def test_a_fraction_of_any_number_of_digits_is_truncated_exactly(unit: str, number: Decimal) -> None:
    scale = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[unit]
    decoder = make_decoder({"format": unit})
    expected = math.floor(Fraction(number) * 1000 / scale)
    value = read(decoder, f"{number:f}")
    if -62_135_596_800_000 <= expected <= 253_402_300_799_999:
        assert value == expected
    else:
        assert isinstance(value, InvalidEvent)


def test_times_in_a_batch_are_read_as_each_time_alone() -> None:
    decoder = make_decoder({"format": "%Y-%m-%dT%H:%M", "zone": BERLIN, "path": "meta.at"})
    texts = [
        f"2023-{month:02}-{day:02}T{hour:02}:30" for month in (3, 10) for day in range(20, 32) for hour in range(24)
    ]
    raws = [json.dumps({"meta": {"at": text}}).encode() for text in [*texts, "odd", None]]
    batch = decoder.decode_all(raws, NOW)
    alone = [decoder.decode_all([raw], NOW) for raw in raws]
    assert decoder.values([e for e in batch.events if e is not None], "at") == [
        decoder.values(single.events, "at")[0] for single in alone if not single.invalid
    ]
    assert list(batch.invalid) == [len(texts)]


def test_long_texts_are_not_cached() -> None:
    time_format = TimeFormat("rfc3339", BERLIN)
    texts = [f"2026-03-01T10:00:00.{number}{'0' * 100_000}" for number in range(100)]
    tracemalloc.start()
    try:
        assert len(time_format.all_micros(texts)) == len(list(map(time_format.micros, texts)))
        assert tracemalloc.get_traced_memory()[0] < 2**20
    finally:
        tracemalloc.stop()
