"""Sketches: exact while small, within the stated error when large, the same however they were split and merged."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill_contract.sketches import build, compact, evaluator
from tidemill_contract.spec import MetricSpec

MEDIAN = evaluator(MetricSpec(name="m", function="quantile", field="v", q=0.5))
DISTINCT = evaluator(MetricSpec(name="d", function="distinct", field="v"))


def rank(values: list[float], value: float | int | None) -> float:
    """The share of values that are at most `value`."""
    assert value is not None
    return sum(v <= value for v in values) / len(values)


@given(st.lists(st.floats(-1e300, 1e300), min_size=1, max_size=300), st.integers(1, 5))
def test_small_quantiles_are_exact(values: list[float], pieces: int) -> None:
    parts = [values[i::pieces] for i in range(pieces)]
    stored = b"".join(build("quantiles", part) or b"" for part in parts)
    expected = sorted(values)[-(-len(values) // 2) - 1]
    assert MEDIAN(stored) == MEDIAN(compact("quantiles", stored)) == expected


@given(st.lists(st.text(max_size=3) | st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=150), st.integers(1, 4))
def test_small_distinct_counts_are_exact(values: list[object], pieces: int) -> None:
    texts = [value if isinstance(value, str) else str(value) for value in values]
    stored = b"".join(build("uniques", texts[i::pieces]) or b"" for i in range(pieces))
    assert DISTINCT(stored) == DISTINCT(compact("uniques", stored)) == len(set(texts))


@pytest.mark.parametrize("q", [0.01, 0.5, 0.95, 0.999])
def test_large_quantiles_are_within_one_percent_of_rank(q: float) -> None:
    rnd = random.Random(7)
    values = [rnd.lognormvariate(0, 2) for _ in range(60_000)]
    stored = b""
    for start in range(0, len(values), 500):
        stored += build("quantiles", values[start : start + 500]) or b""
        if start % 5_000 == 0:
            stored = compact("quantiles", stored)
    value = evaluator(MetricSpec(name="m", function="quantile", field="v", q=q))(stored)
    assert abs(rank(values, value) - q) < 0.01
    assert len(compact("quantiles", stored)) < 12_000


@pytest.mark.parametrize("count", [1_000, 20_000, 200_000])
def test_large_distinct_counts_are_within_two_percent(count: int) -> None:
    stored = b""
    for start in range(0, count, 10_000):
        stored += build("uniques", list(range(start, min(count, start + 10_000)))) or b""
    stored = compact("uniques", stored)
    found = DISTINCT(stored)
    assert found is not None
    assert abs(found - count) < 0.02 * count
    assert len(stored) < 6_000


def test_nothing_is_null_and_what_is_filled_in_is_zero() -> None:
    assert build("quantiles", []) is None
    assert (MEDIAN(None), MEDIAN(b""), DISTINCT(None), DISTINCT(b"")) == (None, 0, None, 0)


def test_an_empty_text_is_a_value() -> None:
    assert DISTINCT(build("uniques", ["", "="])) == 2
