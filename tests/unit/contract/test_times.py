"""Tests of times as texts in specs and requests: they are read like times in events, and truncated."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill_api.query.values import parse_time
from tidemill_contract.times import epoch_ms, read_start, read_time, rfc3339

UTC = dt.UTC
READERS = [read_time, read_start, parse_time]
Reader = Callable[[str], dt.datetime]


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2026-01-01", dt.datetime(2026, 1, 1, tzinfo=UTC)),
        ("2026-01-01T10:20:30Z", dt.datetime(2026, 1, 1, 10, 20, 30, tzinfo=UTC)),
        ("2026-01-01 10:20:30z", dt.datetime(2026, 1, 1, 10, 20, 30, tzinfo=UTC)),
        ("2026-01-01t10:20:30+0130", dt.datetime(2026, 1, 1, 8, 50, 30, tzinfo=UTC)),
        ("2026-01-01T00:00:00-00:30", dt.datetime(2026, 1, 1, 0, 30, tzinfo=UTC)),
        ("2026-01-01T00:00:00.5Z", dt.datetime(2026, 1, 1, 0, 0, 0, 500_000, tzinfo=UTC)),
        ("9999-12-31T23:59:59.9999999Z", dt.datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)),
        ("0001-01-01T00:00:00Z", dt.datetime(1, 1, 1, tzinfo=UTC)),
    ],
)
def test_a_text_is_read_as_its_instant(read: Reader, text: str, moment: dt.datetime) -> None:
    assert read(text) == moment


LENIENT = ("2026-01-01T00:00:00.Z", "0001-01-01T00:00:00+00:01", "9999-12-31T23:59:59-00:01")
"""Texts that are also read in specs, as earlier versions accepted them."""


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize(
    "text",
    [
        "", "x", "2026-01-01T00:00:00", "2026-02-30", "2026-01-01T24:00:00Z", "2026-01-01T00:00:60Z", "2026-01-01T",
        "2026-01-01T00:00:00.Z", "2026-01-01T00:00:00+24:00", "0001-01-01T00:00:00+00:01", "2026-01-01Z",
        "9999-12-31T23:59:59-00:01", "\uff12026-01-01", "2026-01-01T00:00:00Z\n",
    ],
)  # fmt: skip
def test_a_text_that_is_no_instant_is_refused(read: Reader, text: str) -> None:
    if read is read_start and text in LENIENT:
        read(text)
        return
    with pytest.raises(ValueError):
        read(text)


@pytest.mark.parametrize("read", READERS)
@given(st.datetimes(dt.datetime(1970, 1, 1), dt.datetime(2100, 1, 1)), st.text("0123456789", max_size=30))
def test_a_fraction_of_any_number_of_digits_is_truncated(read: Reader, second: dt.datetime, digits: str) -> None:
    second = second.replace(microsecond=0, tzinfo=UTC)
    text = f"{second.isoformat()[:19]}.{digits or '0'}Z"
    micros = int(digits[:6].ljust(6, "0"))
    assert read(text) == second + dt.timedelta(microseconds=micros)
    assert epoch_ms(read(text)) == int(second.timestamp()) * 1000 + micros // 1000
    assert rfc3339(read(text))[:19] == text[:19]


def test_a_request_may_contain_milliseconds_but_no_seconds() -> None:
    """Seconds of current times would be milliseconds of 1970, and events with such times are refused too."""
    assert parse_time("1767225600000") == dt.datetime(2026, 1, 1, tzinfo=UTC)
    assert parse_time("-1") == dt.datetime(1970, 1, 1, tzinfo=UTC) - dt.timedelta(milliseconds=1)
    assert parse_time("631151999") < parse_time("4102444801")
    for seconds in (631_152_000, 1_767_225_600, 4_102_444_800):
        with pytest.raises(ValueError, match=rf"write milliseconds \({seconds}000\)"):
            parse_time(str(seconds))


@pytest.mark.parametrize("text", ["2026-01-01T00:00:00 01:00", "2026-01-01 00:00:00.25 0100"])
def test_a_blank_before_the_offset_is_read_as_a_plus(text: str) -> None:
    assert parse_time(text) == read_time(text[:19].replace(" ", "T") + text[19:].replace(" ", "+"))


@pytest.mark.parametrize("text", ["2026-01-01T00:00Z", "20260101T000000Z", "2026-01-01T00+00"])
def test_a_spec_may_contain_times_in_other_iso_forms(text: str) -> None:
    assert read_start(text) == dt.datetime(2026, 1, 1, tzinfo=UTC)
