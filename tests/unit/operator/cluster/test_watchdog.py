"""The watchdog: what exists must have been seen by the watch, or the operator is blind."""

from __future__ import annotations

from dataclasses import dataclass

from tidemill_operator.cluster.watchdog import Watchdog


@dataclass
class Clock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


def watchdog() -> tuple[Watchdog, Clock]:
    clock = Clock()
    return Watchdog(clock=clock, limit_seconds=120.0), clock


def test_silence_is_well_while_nothing_happens() -> None:
    found, clock = watchdog()
    clock.now = 10_000.0
    assert found.alive


def test_a_version_that_does_not_come_for_too_long_is_death() -> None:
    found, clock = watchdog()
    found.exists("canary", {"u": "7"})
    clock.now = 120.0
    assert found.alive
    clock.now = 120.1
    assert not found.alive


def test_a_version_that_came_before_it_was_asked_for_counts() -> None:
    found, clock = watchdog()
    found.saw("u", "7")
    found.exists("canary", {"u": "7"})
    clock.now = 1_000.0
    assert found.alive


def test_a_later_version_is_as_good() -> None:
    """Of many changes in a row only the last one may be told."""
    found, clock = watchdog()
    found.exists("canary", {"u": "7"})
    found.saw("u", "9")
    clock.now = 1_000.0
    assert found.alive


def test_an_earlier_version_is_not() -> None:
    found, clock = watchdog()
    found.saw("u", "6")
    found.exists("canary", {"u": "7"})
    found.saw("u", "6")
    clock.now = 121.0
    assert not found.alive


def test_newer_versions_do_not_extend_the_time() -> None:
    """An object that changes all the time would hide a dead watch."""
    found, clock = watchdog()
    for version in range(10):
        clock.now = version * 30.0
        found.exists("pipelines", {"u": str(version + 7)})
    assert not found.alive


def test_what_is_gone_is_not_waited_for() -> None:
    """Also if its last event came before it was listed."""
    found, clock = watchdog()
    found.saw("u", "7", gone=True)
    found.exists("pipelines", {"u": "7"})
    found.exists("canary", {"c": "1"})
    found.saw("c", "1")
    found.exists("pipelines", {})
    clock.now = 1_000.0
    assert found.alive


def test_it_recovers_when_the_watch_does() -> None:
    found, clock = watchdog()
    found.exists("canary", {"u": "7"})
    clock.now = 500.0
    assert not found.alive
    found.saw("u", "8")
    assert found.alive
