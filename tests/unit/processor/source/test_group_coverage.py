"""When a member joins its group again because partitions stay with nobody."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

import pytest

from tidemill_processor.source import coverage as module
from tidemill_processor.source.coverage import MAX_PATIENCE_SECONDS, Coverage


def joined_at(monkeypatch: pytest.MonkeyPatch, looks: Iterable[tuple[float, set[int]]]) -> list[float]:
    """The seconds at which a member joins again that sees these partitions untaken at these seconds."""
    now, joins = 0.0, list[float]()
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    coverage = Coverage(lambda: joins.append(now))
    for at, untaken in looks:
        now = at
        coverage.note(frozenset(untaken))
    return joins


def test_partitions_that_stay_with_nobody_make_a_member_join_again(monkeypatch: pytest.MonkeyPatch) -> None:
    assert joined_at(monkeypatch, [(0, {3}), (10, {3}), (20, set()), (30, set())]) == [10]


def test_partitions_that_are_taken_up_by_the_next_look_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert joined_at(monkeypatch, [(0, {3}), (10, set()), (20, {4}), (30, set())]) == []


def test_pauses_grow_while_joining_again_is_in_vain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever keeps partitions from being taken up, the group is not kept from reading the others."""
    joins = joined_at(monkeypatch, [(at, {3}) for at in range(0, 7200, 10)])
    assert joins[:4] == [10, 30, 70, 140]
    assert max(later - former for former, later in pairwise(joins)) == MAX_PATIENCE_SECONDS


def test_the_pause_is_short_again_once_all_partitions_were_taken_up(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = [*((at, {3}) for at in range(0, 100, 10)), (100, set[int]()), (110, {4}), (120, {4})]
    assert joined_at(monkeypatch, looks) == [10, 30, 70, 120]
