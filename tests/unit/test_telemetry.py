"""Lag and freshness in a status: coarse, and now and then only."""

from __future__ import annotations

import pytest

from tidemill_operator.actuators.backlog import Backlog, Position, freshness_seconds
from tidemill_operator.errors import Reason, TidemillError
from tidemill_operator.queue import Key
from tidemill_operator.telemetry import Telemetry, coarse_count, coarse_seconds

KEY = Key("shop", "orders", "u")
STATUS = {"schema": "shop__orders", "topics": [{"name": "shop.orders.events"}]}


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


def test_figures_are_read_once_a_minute_and_stay_meanwhile() -> None:
    now, read = [0.0], []

    def backlog(schema: str, topic: str) -> Backlog:
        read.append((schema, topic))
        return Backlog(1_234, 9.5)

    telemetry = Telemetry(backlog, clock=lambda: now[0])
    first = telemetry.figures(KEY, STATUS, {})
    assert first == {"lag": 1_200, "freshnessSeconds": 10.0}
    now[0] = 59.9
    assert telemetry.figures(KEY, STATUS, first) == first
    assert read == [("shop__orders", "shop.orders.events")]
    now[0] = 60.0
    telemetry.figures(KEY, STATUS, first)
    assert len(read) == 2


def test_figures_that_cannot_be_read_stay_as_they_were() -> None:
    def backlog(*_: str) -> Backlog:
        raise TidemillError(Reason.UNREACHABLE, "away")

    assert Telemetry(backlog).figures(KEY, STATUS, {"lag": 5, "replicas": 3}) == {"lag": 5}


def test_nothing_is_told_of_a_pipeline_that_has_no_topic_yet() -> None:
    assert Telemetry(lambda *_: Backlog(1, 1.0)).figures(KEY, {}, {}) == {}


def test_without_a_counted_event_there_is_no_freshness() -> None:
    assert Telemetry(lambda *_: Backlog(3, None)).figures(KEY, STATUS, {}) == {"lag": 3}


@pytest.mark.parametrize(
    ("positions", "ends", "expected"),
    [
        ({}, {}, None),
        ({0: Position(None, 0, None, 0)}, {0: 5}, None),
        ({0: Position(5, 5, 300, 60_000)}, {0: 5}, 0.3),
        ({0: Position(5, 5, 300, 60_000)}, {0: 6}, 60.3),
        ({0: Position(5, 5, 300, 60_000), 1: Position(9, 9, 2_500, 0)}, {0: 5, 1: 9}, 2.5),
    ],
    ids=["no partition", "nothing read", "read to the end", "standing still", "the worst counts"],
)
def test_freshness_is_the_worst_partitions(
    positions: dict[int, Position], ends: dict[int, int], expected: float | None
) -> None:
    assert freshness_seconds(positions, ends) == expected
