"""Tests of `Rejoiner`: a member rejoins its group if no member is assigned some partitions."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

import pytest

from tidemill_processor.source import rejoining as module
from tidemill_processor.source.rejoining import MAX_PATIENCE_SECONDS, Rejoiner


def rejoin_times(monkeypatch: pytest.MonkeyPatch, checks: Iterable[tuple[float, set[int]]]) -> list[float]:
    """Return the seconds at which a member rejoins that sees these unassigned partitions at these seconds."""
    now, joins = 0.0, list[float]()
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    rejoiner = Rejoiner(lambda: joins.append(now))
    for at, unassigned in checks:
        now = at
        rejoiner.update(frozenset(unassigned))
    return joins


def test_a_member_rejoins_if_partitions_stay_unassigned(monkeypatch: pytest.MonkeyPatch) -> None:
    assert rejoin_times(monkeypatch, [(0, {3}), (10, {3}), (20, set()), (30, set())]) == [10]


def test_a_member_does_not_rejoin_if_partitions_are_assigned_at_the_next_check(monkeypatch: pytest.MonkeyPatch) -> None:
    assert rejoin_times(monkeypatch, [(0, {3}), (10, set()), (20, {4}), (30, set())]) == []


def test_pauses_between_rejoins_grow_while_partitions_stay_unassigned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each rejoin interrupts the reading of all partitions."""
    joins = rejoin_times(monkeypatch, [(at, {3}) for at in range(0, 7200, 10)])
    assert joins[:4] == [10, 30, 70, 140]
    assert max(later - former for former, later in pairwise(joins)) == MAX_PATIENCE_SECONDS


def test_the_first_pause_applies_again_after_all_partitions_were_assigned(monkeypatch: pytest.MonkeyPatch) -> None:
    checks = [*((at, {3}) for at in range(0, 100, 10)), (100, set[int]()), (110, {4}), (120, {4})]
    assert rejoin_times(monkeypatch, checks) == [10, 30, 70, 120]
