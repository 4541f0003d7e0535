"""Tests of the watchdog: the watch must see every listed version in time, or the operator counts as dead."""

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


def test_the_watch_counts_as_alive_while_nothing_changes() -> None:
    dog, clock = watchdog()
    clock.now = 10_000.0
    assert dog.alive


def test_the_watch_counts_as_dead_without_a_listed_version_in_time() -> None:
    dog, clock = watchdog()
    dog.expect_versions("canary", {"u": "7"})
    clock.now = 120.0
    assert dog.alive
    clock.now = 120.1
    assert not dog.alive


def test_a_version_that_was_seen_before_the_list_counts() -> None:
    dog, clock = watchdog()
    dog.record_event("u", "7")
    dog.expect_versions("canary", {"u": "7"})
    clock.now = 1_000.0
    assert dog.alive


def test_a_later_version_counts_too() -> None:
    """The watch may report only the last of many changes."""
    dog, clock = watchdog()
    dog.expect_versions("canary", {"u": "7"})
    dog.record_event("u", "9")
    clock.now = 1_000.0
    assert dog.alive


def test_an_earlier_version_does_not_count() -> None:
    dog, clock = watchdog()
    dog.record_event("u", "6")
    dog.expect_versions("canary", {"u": "7"})
    dog.record_event("u", "6")
    clock.now = 121.0
    assert not dog.alive


def test_newer_versions_do_not_extend_the_time() -> None:
    """Otherwise an object that changes all the time would hide a dead watch."""
    dog, clock = watchdog()
    for version in range(10):
        clock.now = version * 30.0
        dog.expect_versions("pipelines", {"u": str(version + 7)})
    assert not dog.alive


def test_the_version_of_a_deleted_object_is_not_awaited() -> None:
    """The deletion also counts if it was reported before the list."""
    dog, clock = watchdog()
    dog.record_event("u", "7", gone=True)
    dog.expect_versions("pipelines", {"u": "7"})
    dog.expect_versions("canary", {"c": "1"})
    dog.record_event("c", "1")
    dog.expect_versions("pipelines", {})
    clock.now = 1_000.0
    assert dog.alive


def test_the_watchdog_recovers_with_the_watch() -> None:
    dog, clock = watchdog()
    dog.expect_versions("canary", {"u": "7"})
    clock.now = 500.0
    assert not dog.alive
    dog.record_event("u", "8")
    assert dog.alive
