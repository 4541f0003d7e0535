"""Tests of the statistics that detectors keep: moments, tails, and the usual value of each hour."""

from __future__ import annotations

import random

import pytest

from tidemill_processor.detect.detectors import moments as running
from tidemill_processor.detect.detectors import rhythm as hours
from tidemill_processor.detect.detectors import tail as tails

MINUTE, HOUR, DAY = 60_000, 3_600_000, 86_400_000
BASE = 1_700_000_000_000 // DAY * DAY


def test_moments_without_forgetting_are_the_values_own() -> None:
    generator = random.Random(1)
    values = [generator.gauss(100.0, 5.0) for _ in range(50)]
    known: running.Moments = []
    for value in values:
        known = running.learn(known, value)
    mean = sum(values) / 50
    assert known == [50, pytest.approx(mean), pytest.approx(sum((v - mean) ** 2 for v in values) / 50)]


def test_a_tail_knows_how_rare_a_size_is() -> None:
    """On sizes of which one in ten is ten times as large, the estimate at the next power of ten."""
    generator = random.Random(7)
    known: tails.Tail = []
    for _ in range(4_000):
        known = tails.learn(known, 1 / (1 - generator.random()))
    assert [tails.surprise(known, 10**power) for power in (2, 3, 4)] == [
        pytest.approx(power, rel=0.2) for power in (2, 3, 4)
    ]
    assert tails.surprise(known, 1.0) == 0.0
    assert len(known[1]) == tails.KEPT


def test_a_tail_forgets_a_surprise_after_its_memory() -> None:
    known: tails.Tail = []
    for size in (1_000.0, *(1 + (i % 97) / 97 for i in range(3 * tails.MEMORY))):
        known = tails.learn(known, size)
    assert known[1][-1] < 3
    assert tails.surprise(known, 1_000.0) > 4


def test_a_rhythm_knows_an_hour_after_two_days() -> None:
    known = hours.start("day")
    usual = []
    for index in range(24 * 12 * 3):
        at = BASE + index * 5 * MINUTE
        if index % (24 * 12) == 12 * 6:
            usual.append(hours.usual(known, at))
        known = hours.learn(known, at, float(index // 12 % 24))
    assert usual == [None, None, 6.0]


def test_an_hour_is_one_occurrence_however_late_some_of_its_values_come() -> None:
    """Events come out of order: at the turn of the hour, and a day's worth of them after a clock went wrong."""
    in_order = out_of_order = hours.start("day")
    for index in range(20):
        at = BASE + index * HOUR
        for known in range(3):
            in_order = hours.learn(in_order, at + known * MINUTE, float(index))
            out_of_order = hours.learn(out_of_order, at + known * MINUTE, float(index))
            out_of_order = hours.learn(out_of_order, at - (1 + known * 7) * HOUR, 1e6)
    assert out_of_order == in_order
    future = hours.learn(in_order, BASE + 400 * DAY, 5.0)
    assert hours.learn(future, BASE + 20 * HOUR, 7.0)["sum"] == 7.0
