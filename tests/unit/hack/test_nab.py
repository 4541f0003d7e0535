"""Tests of hack/nab: scores that were computed by hand from the benchmark's description, and loading of series."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from nab.scoring import Profile, Result, probation, reward, score_at, score_best
from nab.series import Series, load


def series(rows: int, *windows: tuple[int, int]) -> Series:
    return Series("made/up.csv", tuple(range(rows)), (0.0,) * rows, windows)


def fired(rows: int, *at: int) -> list[float]:
    return [float(row in at) for row in range(rows)]


@pytest.mark.parametrize(
    ("position", "expected", "reason"),
    [
        (-1.0, 0.98661, "a window's start"),
        (-0.5, 0.84828, "the window's middle"),
        (0.0, 0.0, "the window's end"),
        (1.0, -0.98661, "a window's length after the window"),
        (3.0, -1.0, "far after the window"),
    ],
)
def test_the_reward_depends_on_the_position_in_the_window(position: float, expected: float, reason: str) -> None:
    assert reward(position) == pytest.approx(expected, abs=1e-5), reason


@pytest.mark.parametrize(("rows", "expected"), [(0, 0), (100, 15), (1_127, 169), (5_000, 750), (22_000, 750)])
def test_the_probation_is_15_percent_of_the_rows_and_750_rows_at_most(rows: int, expected: int) -> None:
    assert probation(rows) == expected


def test_no_alarm_scores_0_and_one_alarm_at_the_start_of_each_window_100() -> None:
    """The windows of all series are summed."""
    corpus = [series(1_000, (300, 399), (600, 650)), series(500), series(400, (100, 120))]
    assert score_best([(s, [0.5] * len(s.values)) for s in corpus]).score == 0.0
    perfect = [(s, fired(len(s.values), *(w[0] for w in s.windows))) for s in corpus]
    assert score_best(perfect) == Result(1.0, pytest.approx(100.0), 3, 3, 3, 0)


CASES = [
    ((), 0.0, "no alarm"),
    ((500,), 100.0, "at the window's start"),
    ((550,), 100 * (1 + reward(-0.5) / reward(-1)) / 2, "in the window's middle: 50 of 100 rows follow"),
    ((500, 520, 599), 100.0, "only the first alarm in a window counts"),
    ((520, 500), 100.0, "the order of the scores does not matter"),
    ((10, 149), 0.0, "alarms during the probation do not count"),
    ((150,), -5.5, "before any window: the full cost 0.11, of 2 between null and perfect"),
    ((698,), 100 * 0.11 * reward(99 / 99) / 2, "a window's length after the window"),
    ((600,), 100 * 0.11 * reward(1 / 99) / 2, "just after the window: nearly no cost"),
    ((999,), -5.5, "far after the window: the full cost"),
    ((500, 200, 201), 100.0 - 11.0, "each false alarm has a cost"),
]


@pytest.mark.parametrize(("at", "expected", "reason"), CASES)
def test_a_window_is_scored_by_its_first_detection_and_false_alarms_cost(
    at: tuple[int, ...], expected: float, reason: str
) -> None:
    one_window = series(1_000, (500, 599))
    assert score_at([(one_window, fired(1_000, *at))], 1.0).score == pytest.approx(expected), reason


def test_the_best_threshold_is_the_same_for_all_series() -> None:
    """A lower threshold finds the second window, and raises false alarms in the first series."""
    first, second = series(1_000, (500, 599)), series(1_000, (500, 599))
    scores = fired(1_000), fired(1_000)
    scores[0][500] = 0.9
    scores[1][500] = 0.7
    scores[0][200] = scores[0][201] = 0.8
    best = score_best([(first, scores[0]), (second, scores[1])])
    assert (best.threshold, best.detected, best.false_alarms) == (0.7, 2, 2)
    assert best.score == pytest.approx(100 - 100 * 0.22 / 4)
    strict = Profile(false_positive=2.0)
    assert score_best([(first, scores[0]), (second, scores[1])], strict).threshold == 0.9
    assert score_at([(first, scores[0]), (second, scores[1])], math.inf).score == 0.0


def test_a_series_is_loaded_with_its_labelled_windows(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    lines = [f"2014-04-01 00:{minute:02}:00,{minute}.5" for minute in range(0, 60, 5)]
    (tmp_path / "real" / "a.csv").write_text("\n".join(["timestamp,value", *lines]))
    labels = {"real/a.csv": [["2014-04-01 00:10:00.000000", "2014-04-01 00:20:00.000000"]]}
    (tmp_path / "windows.json").write_text(json.dumps(labels))
    (loaded,) = load(tmp_path)
    assert (loaded.name, loaded.values[1], loaded.windows) == ("real/a.csv", 5.5, ((2, 4),))
    assert loaded.times_ms[1] - loaded.times_ms[0] == 300_000


def test_a_folder_without_labels_is_refused_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="set NAB_DIR to a copy of the benchmark"):
        load(tmp_path)
