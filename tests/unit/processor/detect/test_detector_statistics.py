"""Tests of the statistics that detectors keep: moments, tail, and the usual value of each hour."""

from __future__ import annotations

import random

import pytest

from tidemill_processor.detect.detectors import hourly_profile, moments, tail

MINUTE, HOUR, DAY = 60_000, 3_600_000, 86_400_000
BASE = 1_700_000_000_000 // DAY * DAY


def test_the_moments_of_few_values_are_their_mean_and_variance() -> None:
    generator = random.Random(1)
    values = [generator.gauss(100.0, 5.0) for _ in range(50)]
    state: moments.Moments = []
    for value in values:
        state = moments.learn(state, value)
    mean = sum(values) / 50
    assert state == [50, pytest.approx(mean), pytest.approx(sum((v - mean) ** 2 for v in values) / 50)]


def test_a_tail_estimates_how_rare_a_size_is() -> None:
    """One in ten sizes is ten times as large. The estimate holds beyond the sizes that were learnt."""
    generator = random.Random(7)
    state: tail.Tail = []
    for _ in range(4_000):
        state = tail.learn(state, 1 / (1 - generator.random()))
    assert [tail.surprise(state, 10**power) for power in (2, 3, 4)] == [
        pytest.approx(power, rel=0.2) for power in (2, 3, 4)
    ]
    assert tail.surprise(state, 1.0) == 0.0
    assert len(state[1]) == tail.MAX_SIZES


def test_a_tail_forgets_a_large_size_after_its_memory() -> None:
    state: tail.Tail = []
    for size in (1_000.0, *(1 + (i % 97) / 97 for i in range(3 * tail.MEMORY))):
        state = tail.learn(state, size)
    assert state[1][-1] < 3
    assert tail.surprise(state, 1_000.0) > 4


def test_the_usual_value_of_an_hour_is_known_after_two_days() -> None:
    state = hourly_profile.empty("day")
    usual = []
    for index in range(24 * 12 * 3):
        at = BASE + index * 5 * MINUTE
        if index % (24 * 12) == 12 * 6:
            usual.append(hourly_profile.usual_value(state, at))
        state = hourly_profile.learn(state, at, float(index // 12 % 24))
    assert usual == [None, None, 6.0]


def test_late_values_of_an_hour_do_not_change_the_usual_value() -> None:
    """Values may be out of order at the turn of the hour, or hours late."""
    in_order = out_of_order = hourly_profile.empty("day")
    for index in range(20):
        at = BASE + index * HOUR
        for number in range(3):
            in_order = hourly_profile.learn(in_order, at + number * MINUTE, float(index))
            out_of_order = hourly_profile.learn(out_of_order, at + number * MINUTE, float(index))
            out_of_order = hourly_profile.learn(out_of_order, at - (1 + number * 7) * HOUR, 1e6)
    assert out_of_order == in_order
    future = hourly_profile.learn(in_order, BASE + 400 * DAY, 5.0)
    assert hourly_profile.learn(future, BASE + 20 * HOUR, 7.0)["sum"] == 7.0
