"""Tests of detectors: anomalies, false alarms, and rules for every detector."""

from __future__ import annotations

import copy
import json
import math
import random
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tidemill_contract.resource.kinds.detectors import DETECTORS, DetectorSpec
from tidemill_processor.detect.anomalies import parse_state
from tidemill_processor.detect.detectors import COOLDOWN_WINDOWS, State, Verdict, judge, observe, severity

TYPES = tuple(DETECTORS.by_name)
MINUTE, HOUR, DAY = 60_000, 3_600_000, 86_400_000
BASE = 1_700_000_000_000 // DAY * DAY
LARGEST_STATE_BYTES = 8_000
PAGE = Path(__file__).parents[3] / "docs" / "detectors.md"


def run(spec: DetectorSpec, values: list[float], *, every_ms: int = 5 * MINUTE) -> tuple[dict[int, Verdict], State]:
    """Return the verdicts by index, and the last state."""
    state: State = {}
    verdicts = {}
    for index, value in enumerate(values):
        verdict, state = judge(spec, state, BASE + index * every_ms, value)
        if verdict is not None:
            verdicts[index] = verdict
    return verdicts, state


def noise(number: int, *, seed: int = 1, level: float = 100.0) -> list[float]:
    generator = random.Random(seed)
    return [generator.gauss(level, 5.0) for _ in range(number)]


def daily(number: int, *, seed: int = 1) -> list[float]:
    """Return a daily rise and fall in five-minute windows, with noise."""
    wave = (50 * math.sin(2 * math.pi * i / 288) for i in range(number))
    return [100 + w + n for w, n in zip(wave, noise(number, seed=seed, level=0.0), strict=True)]


def test_every_type_has_a_threshold_and_a_formula_in_the_documentation() -> None:
    assert all(DETECTORS.make(type=kind).effective_threshold > 0 for kind in TYPES)
    formulas = re.findall(r"^\| `(\w+)` \| (?!\*|\d)", PAGE.read_text(), re.MULTILINE)
    assert [kind for kind in TYPES if kind not in formulas] == []


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("value", [0.0, 1e-12, 45.0, -1e15, 0.1])
def test_a_constant_series_has_no_anomalies(kind: str, value: float) -> None:
    assert run(DETECTORS.make(type=kind), [value] * 1_200)[0] == {}


@pytest.mark.parametrize("kind", [kind for kind in TYPES if kind != "changepoint"])
def test_a_spike_in_noise_is_found_at_its_index(kind: str) -> None:
    """Changepoint is left out, as it needs more than one value."""
    values = noise(1_500)
    values[1_200] += 100
    verdicts = run(DETECTORS.make(type=kind), values)[0]
    assert 1_200 in verdicts
    assert (verdicts[1_200].value, verdicts[1_200].score >= DETECTORS.by_name[kind].default_threshold) == (
        values[1_200],
        True,
    )


@pytest.mark.parametrize("kind", ["auto", "changepoint"])
def test_a_shift_of_the_level_is_found_within_thirty_values(kind: str) -> None:
    values = [*noise(1_500), *noise(100, level=118.0, seed=2)]
    verdicts = run(DETECTORS.make(type=kind), values)[0]
    assert any(1_500 <= index < 1_530 for index in verdicts), sorted(verdicts)


@pytest.mark.parametrize("kind", ["auto", "seasonal"])
def test_a_value_that_is_usual_only_at_another_hour_is_found(kind: str) -> None:
    """The highest value of the day occurs at the hour of the lowest. The detector zscore does not find it."""
    values = daily(288 * 14)
    night = 288 * 12 + 216
    assert max(values) > 140 > 70 > values[night]
    values[night : night + 12] = [140.0] * 12
    verdicts = run(DETECTORS.make(type=kind), values)[0]
    assert any(night <= index < night + 12 for index in verdicts), sorted(verdicts)
    assert not any(night <= index < night + 12 for index in run(DETECTORS.make(type="zscore"), values)[0])


def test_with_a_weekly_period_quiet_sundays_are_usual_and_a_busy_sunday_is_an_anomaly() -> None:
    values = [10.0 + (i % 7) * 1e-3 if i // 24 % 7 == 6 else 100.0 + (i % 5) * 1e-3 for i in range(24 * 7 * 6)]
    sunday = 24 * (7 * 5 + 6) + 12
    values[sunday] = 100.0
    weekly = DETECTORS.make(type="seasonal", period="week", warmup=24 * 7 * 3)
    assert list(run(weekly, values, every_ms=HOUR)[0]) == [sunday]
    by_day = run(DETECTORS.make(type="seasonal", warmup=24 * 7 * 3), values, every_ms=HOUR)[0]
    assert sunday not in by_day


FALSE_ALARMS = {"auto": 10, "changepoint": 20, "isolation": 20}
"""The largest number of false alarms of each detector that has any."""


@pytest.mark.parametrize("kind", TYPES)
def test_noise_causes_few_false_alarms(kind: str) -> None:
    """The series has 5,000 values, and thresholds are the defaults."""
    assert len(run(DETECTORS.make(type=kind), noise(5_000, seed=3))[0]) <= FALSE_ALARMS.get(kind, 0)


REGULAR = [100.0, 102.0, 104.0, 101.0, 103.0]
OUTLIERS = st.tuples(st.floats(1e4, 1e300), st.sampled_from([1.0, -1.0])).map(math.prod)


@pytest.mark.parametrize("kind", ["mad", "auto"])
@pytest.mark.parametrize("earlier", [None, 1e6, -1e6, 1e15, 1e300])
def test_a_huge_outlier_does_not_hide_a_smaller_outlier_after_it(kind: str, earlier: float | None) -> None:
    """The smaller outlier is 5000 among values around 100."""
    values = [REGULAR[i % 5] for i in range(500)]
    values[400] = 5_000.0
    if earlier is not None:
        values[300] = earlier
    verdicts = run(DETECTORS.make(type=kind, cooldown="0s"), values, every_ms=MINUTE)[0]
    assert 400 in verdicts
    assert (300 in verdicts) is (earlier is not None)


@settings(max_examples=60, deadline=None)
@given(st.integers(50, 300), st.lists(OUTLIERS, max_size=6), st.integers(0, 10**6))
def test_a_few_outliers_move_the_bounds_of_mad_by_no_more_than_a_factor(
    number: int, outliers: list[float], seed: int
) -> None:
    """Outliers have any size, and are at most one in fifty of the stored values."""
    rnd = random.Random(seed)
    values = [rnd.gauss(100.0, 5.0) for _ in range(number)]
    with_outliers = list(values)
    for outlier in outliers[: math.ceil(0.02 * number)]:
        with_outliers[rnd.randrange(number)] = outlier
    spec = DETECTORS.make(type="mad", cooldown="0s")
    bounds = []
    for series in (values, with_outliers):
        verdict = run(spec, [*series, 1e6])[0][number]
        assert verdict.lower is not None
        assert verdict.upper is not None
        assert verdict.lower < 100 < verdict.upper
        bounds.append(verdict.upper - verdict.lower)
    assert 1 / 2.5 <= bounds[1] / bounds[0] <= 2.5


@settings(max_examples=25, deadline=None)
@given(st.lists(OUTLIERS, min_size=1, max_size=3), st.integers(0, 10**6))
@example([10_000.0, -181_372.0, 105_648.0], 827_178)  # After these outliers, 10,000 is found and 5,000 is not.
def test_a_few_outliers_do_not_change_the_level_that_auto_expects(outliers: list[float], seed: int) -> None:
    """Outliers have any size, and are at most one in a hundred values.

    A later outlier is still found: 50 times the level after two outliers, 200 times the level after three.
    """
    rnd = random.Random(seed)
    values = [rnd.gauss(100.0, 2.0) for _ in range(400)]
    for outlier, place in zip(outliers, rnd.sample(range(60, 300), len(outliers)), strict=False):
        values[place] = outlier
    far = 5_000.0 if len(outliers) < 3 else 20_000.0
    verdicts, state = run(DETECTORS.make(type="auto", cooldown="0s"), [*values, far], every_ms=MINUTE)
    assert 400 in verdicts
    assert 80 < state["views"][0][0][1] < 160
    expected = verdicts[400].expected
    assert expected is not None
    assert 50 < expected < 150


@pytest.mark.parametrize("kind", ["mad", "auto"])
def test_a_level_that_shifts_a_thousandfold_is_learnt(kind: str) -> None:
    """Detectors learn each value only up to the usual range. The first level is flat, with the smallest range."""
    verdicts = run(DETECTORS.make(type=kind), [*[1.0] * 500, *noise(2_500, level=1_000.0)])[0]
    assert 500 in verdicts
    assert not [index for index in verdicts if index > 1_500]


VALUES = st.lists(
    st.one_of(
        st.floats(allow_nan=False, allow_infinity=False),
        st.floats(-100, 100),
        st.sampled_from([0.0, 1.0, 5e-324, -1.7e308]),
    ),
    max_size=60,
)


@pytest.mark.parametrize("kind", TYPES)
@settings(max_examples=12, deadline=None)
@given(values=VALUES, seed=st.integers(0, 9), cut=st.integers(0, 400))
def test_a_state_that_is_stored_and_read_gives_the_same_verdicts(
    kind: str, values: list[float], seed: int, cut: int
) -> None:
    """For any values, the figures of verdicts are finite and the state is valid JSON."""
    spec = DETECTORS.make(type=kind, cooldown="0s", warmup=2)
    series = [*noise(300, seed=seed), *values]
    state: State = {}
    stored: State = {}
    for index, value in enumerate(series):
        at = BASE + index * 7 * MINUTE
        given_state = copy.deepcopy(state) if index == cut else None
        verdict, following = judge(spec, state, at, value)
        assert given_state is None or given_state == state, "judge changed the state of its caller"
        if index >= cut:
            stored = json.loads(json.dumps(stored if index > cut else state, allow_nan=False))
            again, stored = judge(spec, stored, at, value)
            assert (again, stored) == (verdict, following)
        if verdict is not None:
            figures = [verdict.score, verdict.expected, verdict.lower, verdict.upper]
            assert all(figure is None or math.isfinite(figure) for figure in figures)
            if verdict.lower is not None and verdict.upper is not None:
                assert verdict.lower <= verdict.upper
        state = following
    assert len(json.dumps(state, allow_nan=False)) < LARGEST_STATE_BYTES


LONGEST: dict[str, dict[str, Any]] = {"mad": {"span": 500}, "seasonal": {"period": "week"}}


@pytest.mark.parametrize("kind", TYPES)
def test_the_state_of_a_detector_is_small(kind: str) -> None:
    """The values have many digits, and the settings are those with the largest states."""
    values = [value * 1.234567890123e-17 for value in noise(24 * 7 * 3 + 500)]
    state = run(DETECTORS.make(type=kind, **LONGEST.get(kind, {})), values, every_ms=HOUR)[1]
    assert len(json.dumps(state)) < LARGEST_STATE_BYTES


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_no_finite_number_is_ignored(kind: str, value: float) -> None:
    state = run(DETECTORS.make(type=kind), noise(50))[1]
    assert judge(DETECTORS.make(type=kind), state, BASE, value) == (None, state)


@pytest.mark.parametrize("kind", ["auto", "zscore", "ewma", "mad", "seasonal"])
def test_exactly_the_values_outside_the_bounds_are_anomalies(kind: str) -> None:
    spec = DETECTORS.make(type=kind)
    values = noise(1_500)
    values[1_200] += 100
    verdicts, _ = run(spec, values)
    verdict = verdicts[1_200]
    assert verdict.expected is not None
    assert verdict.lower is not None
    assert verdict.upper is not None
    reach = verdict.upper - verdict.expected
    for value, anomalous in ((verdict.upper - reach / 100, False), (verdict.upper + reach / 100, True)):
        assert (1_200 in run(spec, [*values[:1_200], value])[0]) is anomalous


def test_the_severity_grows_with_the_distance_from_the_threshold() -> None:
    spec = DETECTORS.make(type="zscore", threshold=4)
    assert [severity(score, spec) for score in (4.0, 5.9, 6.0, 11.9, 12.0)] == [
        "info", "info", "warning", "warning", "critical",
    ]  # fmt: skip
    values = noise(300)
    values[250] += 1_000
    assert run(spec, values)[0][250].severity == "critical"


def test_there_are_no_anomalies_before_the_warmup_ends() -> None:
    values = [*noise(40), 1_000.0]
    assert list(run(DETECTORS.make(type="zscore", warmup=40), values)[0]) == [40]
    assert list(run(DETECTORS.make(type="zscore", warmup=41), values)[0]) == []


def outage(length: int) -> list[float]:
    return [*noise(400), *[1e6 * 10**i for i in range(length)]]


def test_an_anomaly_is_not_repeated_within_its_cooldown() -> None:
    """The first window after the cooldown counts again. The default cooldown is a number of windows."""
    values = outage(100)[:440]
    spec = DETECTORS.make(type="zscore", warmup=390, threshold=3)

    def anomalies(cooldown: str | None) -> list[int]:
        return list(run(spec.model_copy(update={"cooldown": cooldown}), values)[0])

    assert anomalies("0s") == list(range(400, 440))
    assert anomalies("1h") == [400, 412, 424, 436]
    assert anomalies(None) == [400, 400 + COOLDOWN_WINDOWS + 1]


def test_a_state_of_another_detector_or_period_is_discarded() -> None:
    """The cooldown of the other detector ends too."""
    state = run(DETECTORS.make(type="zscore"), outage(1))[1]
    for kind in TYPES:
        fresh = judge(DETECTORS.make(type=kind), {}, BASE, 1.0)[1]
        if kind != "zscore":
            assert judge(DETECTORS.make(type=kind), state, BASE, 1.0) == (None, fresh)
    before = run(DETECTORS.make(type="seasonal"), noise(50))[1]
    weekly = DETECTORS.make(type="seasonal", period="week")
    assert judge(weekly, before, BASE, 1.0)[1] == judge(weekly, {}, BASE, 1.0)[1]
    # This state was stored by a version that did not yet store the detector's type.
    assert judge(weekly, {"n": 3, "mean": 1.0, "m2": 0.0, "var": 0.0}, BASE, 1.0)[1]["n"] == 1


def test_the_state_is_kept_if_only_the_threshold_changes() -> None:
    state = run(DETECTORS.make(type="zscore"), noise(100))[1]
    assert judge(DETECTORS.make(type="zscore", threshold=2), state, BASE, 100.0)[1]["n"] == 101


GREAT = sys.float_info.max
_numbers = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from([0.0, -0.0, 1.0, GREAT, -GREAT, 5e-324, -5e-324, 2.2250738585072014e-308, 1e154, 1e-154]),
)
_settings = st.sampled_from([
    *({"type": kind} for kind in TYPES),
    {"type": "zscore", "threshold": 1e-300}, {"type": "zscore", "threshold": 1000, "cooldown": "0s"},
    {"type": "ewma", "weight": 1e-320}, {"type": "ewma", "weight": 0.999999}, {"type": "mad", "span": 5},
    {"type": "seasonal", "period": "week"},
])  # fmt: skip


@settings(max_examples=150)
@given(
    _settings,
    st.lists(st.tuples(_numbers, st.integers(1, 30)), min_size=1, max_size=12),
    st.sampled_from([1, 5 * MINUTE, HOUR, DAY]),
)
def test_any_finite_values_are_judged_and_learnt_without_errors(
    detector: dict[str, Any], series: list[tuple[float, int]], step: int
) -> None:
    """The figures of verdicts are finite, and jsonb accepts the state."""
    spec, state, at = DETECTORS.make(**{"warmup": 2, **detector}), dict[str, Any](), BASE
    for value, times in series:
        for _ in range(times):
            count, at = state.get("n", 0), at + step
            observe(spec, state, at, value)  # If this failed, `judge` would discard the state.
            verdict, state = judge(spec, state, at, value)
            assert state["n"] == count + 1
            state = parse_state(json.dumps(state, allow_nan=False))
            if verdict is not None:
                figures = (verdict.value, verdict.score, verdict.expected, verdict.lower, verdict.upper)
                assert all(figure is None or math.isfinite(figure) for figure in figures), verdict


@pytest.mark.parametrize("kind", TYPES)
def test_a_detector_continues_to_learn_after_the_largest_float(kind: str) -> None:
    values = [*noise(400), GREAT, *noise(400, seed=2)]
    verdicts, state = run(DETECTORS.make(type=kind), values)
    assert state["n"] == len(values)
    if kind not in ("changepoint", "seasonal"):  # These detectors need more values, or the hours of two days.
        assert 400 in verdicts


@pytest.mark.parametrize("kind", TYPES)
def test_a_damaged_state_is_discarded(kind: str) -> None:
    spec = DETECTORS.make(type=kind)
    _, state = run(spec, noise(50))
    damaged = {name: value if name in ("of", "n") else 5 for name, value in state.items()}
    verdict, following = judge(spec, damaged, BASE, 1.0)
    assert (verdict, following["n"]) == (None, 1)
