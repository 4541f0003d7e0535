"""Tests of lag and freshness in the status: rounded, written soon after a large change, and not without a change."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tidemill_operator.observer.figures import (
    UNAVAILABLE,
    Figures,
    Observation,
    coarse_count,
    coarse_seconds,
    duration,
    is_write_due,
    non_observer_fields,
    observer_fields,
    status_fields,
)

FIGURES = Figures(1_234, 9.5, 11.0, 3.0, positions_at=1_000.0)
SHOWN = {
    "lag": 1_200,
    "lagSeconds": 10,
    "freshness": "20s",
    "freshnessSeconds": 20.0,
    "watermarkAgeSeconds": 5,
}
AWAY = {
    "type": UNAVAILABLE,
    "status": "True",
    "reason": "Unreachable",
    "message": "Kafka does not tell",
    "lastTransitionTime": "1970-01-01T00:16:40Z",
    "observedGeneration": 2,
}


@pytest.mark.parametrize(
    ("count", "expected"),
    [(0, 0), (7, 7), (99, 99), (100, 100), (104, 100), (105, 100), (106, 110), (12_345, 12_000), (999_999, 1_000_000)],
)
def test_counts_have_two_digits(count: int, expected: int) -> None:
    assert coarse_count(count) == expected


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(-5.0, 1.0), (0.2, 1.0), (1.0, 1.0), (1.1, 2.0), (4.0, 5.0), (10.0, 10.0), (11.0, 20.0), (50.1, 100.0)],
)
def test_seconds_are_rounded_up_in_steps(seconds: float, expected: float) -> None:
    assert coarse_seconds(seconds) == expected


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(1.0, "1s"), (100.0, "100s"), (200.0, "4m"), (5_000.0, "84m"), (10_000.0, "3h"), (200_000.0, "3d")],
)
def test_durations_have_a_unit(seconds: float, expected: str) -> None:
    assert duration(seconds) == expected


def test_figures_are_rounded_in_the_status() -> None:
    assert status_fields(Observation(FIGURES, "", 1_001.0), {}, 1) == SHOWN


def test_unknown_figures_are_missing() -> None:
    """Without arrivals and without a watermark, both are missing. Without lag, its age is zero."""
    assert status_fields(Observation(Figures(0, 0.0, None, None, 1_000.0), "", 1_001.0), {}, 1) == {
        "lag": 0,
        "lagSeconds": 0,
    }


def test_old_positions_are_shown_with_their_time() -> None:
    new_status = status_fields(Observation(FIGURES, "", 1_015.1), {}, 1)
    assert new_status == {**SHOWN, "figuresAt": "1970-01-01T00:16:40Z"}


def test_unavailable_figures_are_only_a_condition() -> None:
    """The condition keeps the time of its transition."""
    new_status = status_fields(Observation(None, "Kafka does not tell", 1_000.0), SHOWN, 2)
    assert new_status == {"conditions": [AWAY]}
    assert status_fields(Observation(None, "Kafka does not tell", 1_100.0), new_status, 2) == new_status


def test_a_status_is_split_into_figures_and_the_rest() -> None:
    ready = {"type": "Ready", "status": "True"}
    status = {**SHOWN, "schema": "s", "conditions": [ready, AWAY]}
    assert observer_fields(status) == {**SHOWN, "conditions": [AWAY]}
    assert non_observer_fields(status) == {"schema": "s", "conditions": [ready]}
    assert (observer_fields({}), non_observer_fields({})) == ({}, {})


NEWS: list[tuple[str, dict[str, Any], dict[str, Any], float, bool]] = [
    ("settled pipelines write nothing", SHOWN, SHOWN, 1e9, False),
    ("the first figures", {}, SHOWN, 1e9, True),
    ("figures become unknown", SHOWN, {"conditions": [AWAY]}, 0.0, True),
    ("figures are known again", {"conditions": [AWAY]}, SHOWN, 0.0, True),
    ("a little more", SHOWN, {**SHOWN, "lag": 1_300}, 59.0, False),
    ("a little more, and some time has passed", SHOWN, {**SHOWN, "lag": 1_300}, 60.0, True),
    ("much more", SHOWN, {**SHOWN, "lag": 12_000}, 10.0, True),
    ("much more, but just written", SHOWN, {**SHOWN, "lag": 12_000}, 9.9, False),
    ("the lag is worked off", SHOWN, {**SHOWN, "lag": 0, "lagSeconds": 0}, 10.0, True),
    ("a small lag of events under way", {"lag": 0, "lagSeconds": 0}, {"lag": 9, "lagSeconds": 5}, 10.0, False),
    ("the same small lag gets older", {"lag": 3, "lagSeconds": 5}, {"lag": 3, "lagSeconds": 10}, 10.0, True),
    ("events no longer arrive", SHOWN, {"lag": 1_200, "lagSeconds": 10, "watermarkAgeSeconds": 5}, 10.0, True),
]


@pytest.mark.parametrize(("reason", "shown", "new_status", "seconds", "expected"), NEWS, ids=[row[0] for row in NEWS])
def test_figures_are_written_if_they_changed_enough_for_their_age(
    reason: str, shown: dict[str, Any], new_status: dict[str, Any], seconds: float, expected: bool
) -> None:
    assert is_write_due(shown, new_status, seconds) is expected


def test_a_pipeline_that_stops_counting_writes_with_growing_intervals() -> None:
    """The age of the lag is rounded in steps. A day has at most seventeen writes."""
    shown: dict[str, Any] = {}
    writes, written = 0, -1e9
    for second in range(0, 86_400, 5):
        figures = replace(FIGURES, lag_seconds=float(second), freshness_seconds=float(second), positions_at=second)
        new_status = status_fields(Observation(figures, "", float(second)), shown, 1)
        if is_write_due(shown, new_status, second - written):
            shown, writes, written = new_status, writes + 1, second
    assert writes <= 17
