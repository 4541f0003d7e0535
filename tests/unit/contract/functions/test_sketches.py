"""Tests of sketches: small sketches are exact, and large sketches are within the documented error."""

from __future__ import annotations

import math
import random
from collections import Counter
from itertools import accumulate
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidemill_contract.functions.partials import Partial
from tidemill_contract.functions.sketches import VALUE_BYTES, build, compact, slots_log2
from tidemill_contract.resource.kinds.metrics import METRICS
from tidemill_contract.windows import find_decoder

QUANTILES, UNIQUES, FREQUENT = (Partial(kind, "v", "bytea", 10) for kind in ("quantiles", "uniques", "frequent"))
MEDIAN = find_decoder(METRICS.make(name="m", function="quantile", field="v", q=0.5), "number")
DISTINCT = find_decoder(METRICS.make(name="d", function="distinct", field="v"), "string")


def rank(values: list[float], value: float | int | None) -> float:
    """Return the share of values that are at most `value`."""
    assert value is not None
    return sum(v <= value for v in values) / len(values)


@given(st.lists(st.floats(-1e300, 1e300), min_size=1, max_size=300), st.integers(1, 5))
def test_small_quantiles_are_exact(values: list[float], pieces: int) -> None:
    parts = [values[i::pieces] for i in range(pieces)]
    stored = b"".join(build(QUANTILES, part) or b"" for part in parts)
    expected = sorted(values)[-(-len(values) // 2) - 1]
    assert MEDIAN(stored) == MEDIAN(compact(QUANTILES, stored)) == expected


@given(st.lists(st.text(max_size=3) | st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=150), st.integers(1, 4))
def test_small_distinct_counts_are_exact(values: list[object], pieces: int) -> None:
    texts = [value if isinstance(value, str) else str(value) for value in values]
    stored = b"".join(build(UNIQUES, texts[i::pieces]) or b"" for i in range(pieces))
    assert DISTINCT(stored) == DISTINCT(compact(UNIQUES, stored)) == len(set(texts))


@pytest.mark.parametrize("q", [0.01, 0.5, 0.95, 0.999])
def test_large_quantiles_are_within_one_percent_of_rank(q: float) -> None:
    rnd = random.Random(7)
    values = [rnd.lognormvariate(0, 2) for _ in range(60_000)]
    stored = b""
    for start in range(0, len(values), 500):
        stored += build(QUANTILES, values[start : start + 500]) or b""
        if start % 5_000 == 0:
            stored = compact(QUANTILES, stored)
    value = find_decoder(METRICS.make(name="m", function="quantile", field="v", q=q), "number")(stored)
    assert abs(rank(values, value) - q) < 0.01
    assert len(compact(QUANTILES, stored)) < 12_000


@pytest.mark.parametrize("count", [1_000, 20_000, 200_000])
def test_large_distinct_counts_are_within_two_percent(count: int) -> None:
    stored = b""
    for start in range(0, count, 10_000):
        stored += build(UNIQUES, list(range(start, min(count, start + 10_000)))) or b""
    stored = compact(UNIQUES, stored)
    estimate = DISTINCT(stored)
    assert estimate is not None
    assert abs(estimate - count) < 0.02 * count
    assert len(stored) < 6_000


def test_a_missing_sketch_is_null_and_an_empty_sketch_is_zero() -> None:
    assert build(QUANTILES, []) is None
    assert (MEDIAN(None), MEDIAN(b""), DISTINCT(None), DISTINCT(b"")) == (None, 0, None, 0)


def test_an_empty_text_counts_as_a_value() -> None:
    assert DISTINCT(build(UNIQUES, ["", "="])) == 2


def top(stored: bytes | None, kind: str = "string", k: int = 10) -> list[tuple[Any, int, int]] | None:
    """Return value, count and error of each listed value."""
    listed = find_decoder(METRICS.make(name="t", function="topk", field="v", k=k), kind)(stored)
    return None if listed is None else [(item["value"], item["count"], item["error"]) for item in listed]


def ranked(values: list[Any], k: int = 10) -> list[tuple[Any, int, int]]:
    """Return the list of an exact sketch."""
    counts = sorted((-count, value) for value, count in Counter(values).items())
    return [(value, -count, 0) for count, value in counts[:k]]


VALUES = {
    "string": st.text(st.characters(exclude_categories=["Cs"]), max_size=2),
    "integer": st.integers(-3, 3) | st.integers(-(2**63), 2**63 - 1),
    "number": st.sampled_from([0.0, -0.0, 1.5, 1e300, 5e-324, 3.0]) | st.floats(allow_nan=False, allow_infinity=False),
    "boolean": st.booleans(),
}


@pytest.mark.parametrize("kind", VALUES)
@given(st.data())
def test_topk_of_few_values_is_exact(kind: str, data: st.DataObject) -> None:
    """The order and the batches of values make no difference. Values of equal count are sorted."""
    values = data.draw(st.lists(VALUES[kind], min_size=1, max_size=200))
    k, pieces = data.draw(st.integers(1, 100)), data.draw(st.integers(1, 5))
    shuffled = data.draw(st.permutations(values))
    frames = [build(FREQUENT, shuffled[i::pieces]) or b"" for i in range(pieces)]
    early = data.draw(st.integers(0, pieces))
    stored = (compact(FREQUENT, b"".join(frames[:early])) if early else b"") + b"".join(frames[early:])
    assert top(stored, kind, k) == top(compact(FREQUENT, stored), kind, k) == ranked(values, k)


def test_topk_lists_times_as_rfc3339() -> None:
    assert top(build(FREQUENT, [1_772_366_400_250, 0, 0]), "timestamp") == [
        ("1970-01-01T00:00:00Z", 2, 0),
        ("2026-03-01T12:00:00.250Z", 1, 0),
    ]


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 10**9),
    st.integers(1, 100),
    st.sampled_from([0.0, 0.7, 1.0, 1.5]),
    st.lists(st.tuples(st.integers(1, 4_000), st.booleans()), min_size=1, max_size=12),
)
def test_topk_of_many_values_is_within_the_documented_bounds(
    seed: int, k: int, skew: float, batches: list[tuple[int, bool]]
) -> None:
    """Every value that is more frequent than the last listed value is listed."""
    rnd, partial = random.Random(seed), Partial("frequent", "v", "bytea", k)
    names = [f"/page/{number}" for number in range(5_000)]
    rnd.shuffle(names)
    weights = [1 / rank**skew for rank in range(1, 5_001)]
    true, stored = Counter[str](), b""
    for number, compacted in batches:
        values = rnd.choices(names, weights, k=number)
        true.update(values)
        stored += build(partial, values) or b""
        stored = compact(partial, stored) if compacted else stored
    slots = 2 ** slots_log2(k)
    for sketch in (stored, compact(partial, stored)):
        listed = top(sketch, k=k)
        assert listed is not None
        assert [(-count, value) for value, count, _ in listed] == sorted((-count, value) for value, count, _ in listed)
        assert all(count - error <= true[value] <= count for value, count, error in listed)
        bound = 3.5 / slots * true.total()
        _, last, error = listed[-1] if listed else ("", 0, bound)
        assert error <= bound
        unlisted = max((count for value, count in true.items() if value not in {item[0] for item in listed}), default=0)
        assert unlisted <= (last if len(listed) == k else error)
    assert len(compact(partial, stored)) < 100 + 0.75 * slots * (12 + len("/page/4999"))


@pytest.mark.parametrize(("k", "exact"), [(10, 384), (64, 768), (100, 1_536)])
def test_topk_is_exact_up_to_three_quarters_of_the_slots(k: int, exact: int) -> None:
    """With one more value, no value is listed, as all occur once."""
    partial = Partial("frequent", "v", "bytea", k)
    halves = [list(range(0, exact, 2)), list(range(1, exact, 2))]
    stored = b"".join(compact(partial, build(partial, half) or b"") for half in halves)
    assert top(compact(partial, stored), "integer", k) == ranked(list(range(exact)), k)
    assert top(stored + (build(partial, [exact]) or b""), "integer", k) == []


def test_topk_does_not_depend_on_the_order_of_frames() -> None:
    rnd = random.Random(5)
    frames = [build(FREQUENT, rnd.choices(range(3_000), k=2_000)) or b"" for _ in range(6)]
    answers = [top(b"".join(rnd.sample(frames, 6)), "integer") for _ in range(10)]
    assert answers == answers[:1] * 10


def test_topk_merges_frames_of_specs_with_another_k() -> None:
    """The larger sketch contains the values of both, exactly if they fit."""
    few, many = Partial("frequent", "v", "bytea", 10), Partial("frequent", "v", "bytea", 100)
    assert (slots_log2(10), slots_log2(32), slots_log2(33), slots_log2(100)) == (9, 9, 10, 11)
    values = [number for number in range(1_000) for _ in range(1 + number % 3)]
    stored = (build(few, values[:300]) or b"") + (build(many, values[300:]) or b"")
    assert top(stored, "integer", 100) == top(compact(few, stored), "integer", 100) == ranked(values, 100)


def test_long_texts_are_shortened_and_stay_different() -> None:
    kept, a, b = "ü" * (VALUE_BYTES // 2), "ü" * 100_000, "ü" * 99_999 + "x"
    listed = top(build(FREQUENT, [kept, a, a, a, b, b]))
    assert listed is not None
    assert [count for _, count, _ in listed] == [3, 2, 1]
    assert listed[2][0] == kept
    assert all(value.startswith("ü" * 100 + "…") and len(value.encode()) <= VALUE_BYTES for value, _, _ in listed[:2])


def test_topk_of_no_values_is_null() -> None:
    assert build(FREQUENT, []) is None
    assert top(None) is None


def test_topk_lists_the_ten_most_frequent_of_a_hundred_thousand_values() -> None:
    """Frequencies follow Zipf's law, in twenty batches. The error is at most a third of the allowed error."""
    rnd = random.Random(11)
    weights = list(accumulate(1 / rank for rank in range(1, 100_001)))
    true, stored = Counter[int](), b""
    for _ in range(20):
        values = rnd.choices(range(100_000), cum_weights=weights, k=10_000)
        true.update(values)
        stored = compact(FREQUENT, stored + (build(FREQUENT, values) or b""))
    listed = top(stored, "integer")
    assert listed is not None
    assert [value for value, _, _ in listed] == [value for value, _, _ in ranked(list(true.elements()))]
    assert max(count - true[value] for value, count, _ in listed) <= listed[0][2] <= 0.0023 * 200_000
    assert len(stored) < 9_000
    # If frequent values were added first, each batch would evict half of them, and 50 of the 100 would be left.
    many = {value for value, _, _ in top(stored, "integer", 100) or []}
    assert len(many & {value for value, _ in true.most_common(100)}) >= 95


def test_a_sketch_does_not_depend_on_the_order_of_values_in_a_batch() -> None:
    """A batch that is committed again stores the same sketch."""
    rnd = random.Random(2)
    values = rnd.choices(range(3_000), k=5_000)
    assert build(FREQUENT, values) == build(FREQUENT, rnd.sample(values, len(values)))


BIG = st.sampled_from([0, 2**53, -(2**53), 2**63 - 5, -(2**63) + 5]).flatmap(
    lambda edge: st.integers(edge - 4, edge + 4)
)


@given(st.lists(BIG, min_size=1, max_size=200), st.integers(1, 5), st.floats(0.000001, 0.999999))
def test_quantiles_of_integers_beyond_doubles_are_exact(values: list[int], pieces: int, q: float) -> None:
    """The result is one of the values, although some batches are stored as doubles."""
    quantile = find_decoder(METRICS.make(name="m", function="quantile", field="v", q=q), "integer")
    stored = b"".join(build(QUANTILES, values[i::pieces]) or b"" for i in range(pieces))
    expected = sorted(values)[math.ceil(q * len(values)) - 1]
    assert quantile(stored) == quantile(compact(QUANTILES, stored)) == expected


def test_quantiles_of_many_integers_beyond_doubles_are_within_one_percent_of_rank() -> None:
    rnd, stored = random.Random(7), b""
    values = [rnd.randrange(2**62) if rnd.random() < 0.5 else rnd.randrange(10**6) for _ in range(20_000)]
    for start in range(0, len(values), 500):
        stored = compact(QUANTILES, stored + (build(QUANTILES, values[start : start + 500]) or b""))
        stored = compact(QUANTILES, stored + (build(QUANTILES, [float(start)]) or b""))
    estimate = find_decoder(METRICS.make(name="m", function="quantile", field="v", q=0.9), "integer")(stored)
    assert estimate in values
    assert abs(rank(values, estimate) - 0.9) < 0.01
    assert len(stored) < 24_000
