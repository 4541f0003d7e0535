"""Tests of time partitions: every day is in a partition, and the number of partitions is bounded."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from tidemill_contract.tables.time_partitions import (
    MAX_NEW_TABLES,
    MAX_PARTITION_TABLES,
    WIDEN_EVERY,
    Span,
    new_partitions,
)

TODAY = 20_700
DAYS = st.integers(0, TODAY)


def test_a_few_days_get_partitions_of_the_configured_width() -> None:
    assert new_partitions({20_001, 20_000, 20_005}, 1, []) == [(20_000, 20_001), (20_001, 20_002), (20_005, 20_006)]
    assert new_partitions({20_001, 20_000, 20_005}, 4, []) == [(20_000, 20_004), (20_004, 20_008)]


def test_existing_partitions_are_kept_and_new_partitions_fill_the_days_between() -> None:
    existing = [(20_000, 20_001), (20_003, 20_005)]
    assert new_partitions({20_000, 20_004}, 1, existing) == []
    assert new_partitions({20_001, 20_006}, 8, existing) == [(20_001, 20_003), (20_005, 20_008)]


def test_a_year_in_a_batch_gets_narrow_partitions_for_its_last_days() -> None:
    partitions = new_partitions(range(20_000, 20_365), 1, [])
    assert len(partitions) <= MAX_NEW_TABLES
    assert partitions[-50:] == [(day, day + 1) for day in range(20_315, 20_365)]


def test_a_single_day_in_the_future_does_not_widen_partitions() -> None:
    partitions = new_partitions([*range(20_000, 20_090), 24_000], 1, [])
    assert {end - first for first, end in partitions} == {1}


def test_a_replay_of_fifty_years_creates_a_bounded_number_of_partitions() -> None:
    """Days arrive in order, and no partition expires."""
    existing: list[Span] = []
    for day in range(TODAY - 50 * 365, TODAY):
        existing += new_partitions({day}, 1, existing)
    assert len(existing) < 900
    assert existing[: MAX_PARTITION_TABLES - 1] == [(d, d + 1) for d, _ in existing[: MAX_PARTITION_TABLES - 1]]


@given(st.lists(st.sets(DAYS, max_size=300), max_size=8), st.integers(1, 9))
def test_every_day_is_in_exactly_one_partition(batches: list[set[int]], width: int) -> None:
    """After every batch, partitions do not overlap, and none is empty."""
    existing: list[Span] = []
    for days in batches:
        created = new_partitions(days, width, existing)
        assert created == sorted(created)
        existing = sorted([*existing, *created])
        assert all(first < end for first, end in existing)
        assert all(before[1] <= after[0] for before, after in pairwise(existing))
        assert all(any(first <= day < end for first, end in existing) for day in days)


@given(st.data())
def test_hostile_days_create_a_bounded_number_of_partitions(data: st.DataObject) -> None:
    """Each batch contains days without a partition, at any distance."""
    existing: list[Span] = []
    for _ in range(data.draw(st.integers(1, 25))):
        step, first = data.draw(st.integers(1, 400)), data.draw(st.integers(0, 400))
        created = new_partitions(range(first, TODAY, step), 1, existing)
        assert len(created) <= MAX_NEW_TABLES + len(existing) + 1
        existing = sorted([*existing, *created])
    assert len(existing) <= 2 * (MAX_PARTITION_TABLES + 16 * WIDEN_EVERY)
