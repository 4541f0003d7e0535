"""Tests of the backlog: how many events partitions are behind, also while no results can be stored."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any, cast

import pytest
from prometheus_client import REGISTRY

from tidemill_processor.source import backlog as backlog_module
from tidemill_processor.source.backlog import FRESH_SECONDS, Backlog
from tidemill_processor.transaction import Position

_partitions = itertools.count(1_000_000)


class Topic(SimpleNamespace):
    """The attributes of the source that the backlog reads."""

    def last_end_reached(self, partition: int) -> int:
        return int(self.read.get(partition, -1))


def lag(partition: int) -> float | None:
    return REGISTRY.get_sample_value("tidemill_lag_events", {"partition": str(partition)})


def make(*next_offsets: int) -> tuple[list[int], Topic, dict[int, Position], Backlog]:
    partitions = [next(_partitions) for _ in next_offsets]
    positions = {p: Position(at, 1) for p, at in zip(partitions, next_offsets, strict=True)}
    topic = Topic(assigned=frozenset(partitions), read={})
    return partitions, topic, positions, Backlog(cast(Any, topic), positions)


def test_the_backlog_is_the_distance_from_the_committed_position_to_the_end() -> None:
    (a, b), topic, positions, backlog = make(10, 20)
    assert backlog.events is None, "nothing was measured yet"
    backlog.measure({a: 15, b: 20}, 1.0)
    assert (backlog.events, lag(a), lag(b)) == (5, 5, 0)
    backlog.measure({a: 500, b: 700}, 2.0)  # The committed positions have not changed.
    assert (backlog.events, lag(a), lag(b)) == (1170, 490, 680)
    assert (backlog.take_new_ends(), backlog.take_new_ends()) == (({a: 500, b: 700}, 2.0), None)
    positions[a] = Position(500, 1)
    topic.assigned = frozenset([a])
    backlog.measure({a: 500}, 3.0)
    assert (backlog.events, lag(a), lag(b)) == (0, 0, None)


def test_a_partition_without_a_known_position_has_no_lag() -> None:
    (a, b), _, positions, backlog = make(10, 20)
    positions.clear()
    positions[a] = Position(10, 1)
    backlog.measure({a: 10, b: 30}, 1.0)
    assert (backlog.events, lag(a), lag(b)) == (None, 0, None)


def test_transaction_markers_at_the_end_do_not_count_as_events() -> None:
    (a,), topic, positions, backlog = make(10)
    topic.read = {a: 12}
    backlog.measure({a: 12}, 1.0)
    topic.read = {}
    backlog.measure({a: 12}, 2.0)
    assert backlog.events == 0
    positions[a] = Position(11, 1)
    backlog.measure({a: 20}, 3.0)
    assert backlog.events == 9


def test_a_measurement_of_the_backlog_becomes_unknown_after_its_lifetime(monkeypatch: pytest.MonkeyPatch) -> None:
    (a,), _, _, backlog = make(10)
    now = 100.0
    monkeypatch.setattr(backlog_module, "time", SimpleNamespace(monotonic=lambda: now))
    backlog.measure({a: 12}, now)
    now += FRESH_SECONDS
    backlog.expire()
    assert (backlog.events, lag(a)) == (2, 2)
    now += 1
    backlog.expire()
    assert (backlog.events, lag(a)) == (None, None)
