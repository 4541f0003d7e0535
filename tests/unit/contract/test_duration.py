"""Tests of durations: parsing, formatting, and refused texts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill_contract.duration import MAX_MS, format_ms, parse_ms


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("250ms", 250),
        ("10s", 10_000),
        ("5m", 300_000),
        ("1h", 3_600_000),
        ("7d", 604_800_000),
        ("0s", 0),
        ("3650d", MAX_MS),
    ],
)
def test_a_duration_is_parsed_to_milliseconds(text: str, expected: int) -> None:
    assert parse_ms(text) == expected


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        ("5", "no unit"),
        ("5 m", "a space"),
        ("-5m", "a sign"),
        ("1.5h", "a fraction"),
        ("1h30m", "two units"),
        ("5M", "upper case"),
        ("05m", "a leading zero"),
        ("5m\n", "a line break"),
        ("\u0665m", "other digits"),
        ("3651d", "more than ten years"),
        ("9" * 12 + "d", "too many digits"),
    ],
)
def test_a_text_that_is_no_duration_is_refused(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match="duration"):
        parse_ms(text)


@given(st.integers(0, 999_999_999))
def test_a_formatted_duration_is_parsed_to_the_same_value(value_ms: int) -> None:
    assert parse_ms(format_ms(value_ms)) == value_ms
