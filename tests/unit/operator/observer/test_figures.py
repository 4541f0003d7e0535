"""What a status tells of lag and freshness: coarse, soon if much changes, nothing while nothing does."""

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
    is_news,
    others,
    shown_by,
    told,
)

FIGURES = Figures(1_234, 9.5, 11.0, 3.0, positions_at=1_000.0)
TOLD = {
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


def test_figures_are_told_in_steps() -> None:
    assert told(Observation(FIGURES, "", 1_001.0), {}, 1) == TOLD


def test_what_is_not_known_is_blank() -> None:
    """No event has arrived lately, no watermark yet; and lag of nothing has no age."""
    assert told(Observation(Figures(0, 0.0, None, None, 1_000.0), "", 1_001.0), {}, 1) == {"lag": 0, "lagSeconds": 0}


def test_positions_that_are_old_have_their_time() -> None:
    found = told(Observation(FIGURES, "", 1_015.1), {}, 1)
    assert found == {**TOLD, "figuresAt": "1970-01-01T00:16:40Z"}


def test_figures_that_are_not_known_are_a_condition_and_nothing_else() -> None:
    """It keeps the time at which it became true."""
    found = told(Observation(None, "Kafka does not tell", 1_000.0), TOLD, 2)
    assert found == {"conditions": [AWAY]}
    assert told(Observation(None, "Kafka does not tell", 1_100.0), found, 2) == found


def test_a_status_falls_into_two_parts() -> None:
    ready = {"type": "Ready", "status": "True"}
    status = {**TOLD, "schema": "s", "conditions": [ready, AWAY]}
    assert shown_by(status) == {**TOLD, "conditions": [AWAY]}
    assert others(status) == {"schema": "s", "conditions": [ready]}
    assert (shown_by({}), others({})) == ({}, {})


NEWS: list[tuple[str, dict[str, Any], dict[str, Any], float, bool]] = [
    ("settled pipelines write nothing", TOLD, TOLD, 1e9, False),
    ("the first figures", {}, TOLD, 1e9, True),
    ("not known any more", TOLD, {"conditions": [AWAY]}, 0.0, True),
    ("known again", {"conditions": [AWAY]}, TOLD, 0.0, True),
    ("a little more", TOLD, {**TOLD, "lag": 1_300}, 59.0, False),
    ("a little more, and some time has passed", TOLD, {**TOLD, "lag": 1_300}, 60.0, True),
    ("much more", TOLD, {**TOLD, "lag": 12_000}, 10.0, True),
    ("much more, but just written", TOLD, {**TOLD, "lag": 12_000}, 9.9, False),
    ("worked off", TOLD, {**TOLD, "lag": 0, "lagSeconds": 0}, 10.0, True),
    ("what is under way comes and goes", {"lag": 0, "lagSeconds": 0}, {"lag": 9, "lagSeconds": 5}, 10.0, False),
    ("a few events stand", {"lag": 3, "lagSeconds": 5}, {"lag": 3, "lagSeconds": 10}, 10.0, True),
    ("nothing arrives any more", TOLD, {"lag": 1_200, "lagSeconds": 10, "watermarkAgeSeconds": 5}, 10.0, True),
]


@pytest.mark.parametrize(("reason", "shown", "found", "seconds", "expected"), NEWS, ids=[row[0] for row in NEWS])
def test_figures_are_written_if_they_changed_enough_for_their_age(
    reason: str, shown: dict[str, Any], found: dict[str, Any], seconds: float, expected: bool
) -> None:
    assert is_news(shown, found, seconds) is expected


def test_a_pipeline_that_stands_still_writes_ever_more_seldom() -> None:
    """Its lag's age is told in steps: a day of it is seventeen writes."""
    shown: dict[str, Any] = {}
    writes, written = 0, -1e9
    for second in range(0, 86_400, 5):
        figures = replace(FIGURES, lag_seconds=float(second), freshness_seconds=float(second), positions_at=second)
        found = told(Observation(figures, "", float(second)), shown, 1)
        if is_news(shown, found, second - written):
            shown, writes, written = found, writes + 1, second
    assert writes <= 17
