"""Time partitions: every day gets one, and their number stays bounded whatever days events name."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from tidemill_contract.tables.storage import MAX_NEW_TABLES, MAX_PARTITION_TABLES, WIDEN_EVERY, Span, new_partitions

TODAY = 20_700
DAYS = st.integers(0, TODAY)


def test_few_days_get_partitions_of_their_own_width() -> None:
    assert new_partitions({20_001, 20_000, 20_005}, 1, []) == [(20_000, 20_001), (20_001, 20_002), (20_005, 20_006)]
    assert new_partitions({20_001, 20_000, 20_005}, 4, []) == [(20_000, 20_004), (20_004, 20_008)]


def test_what_is_held_is_left_alone() -> None:
    """Days in a partition need none; a new one takes only the free days around its own."""
    held = [(20_000, 20_001), (20_003, 20_005)]
    assert new_partitions({20_000, 20_004}, 1, held) == []
    assert new_partitions({20_001, 20_006}, 8, held) == [(20_001, 20_003), (20_005, 20_008)]


def test_a_year_in_one_batch_has_fine_partitions_where_it_ends() -> None:
    found = new_partitions(range(20_000, 20_365), 1, [])
    assert len(found) <= MAX_NEW_TABLES
    assert found[-50:] == [(day, day + 1) for day in range(20_315, 20_365)]


def test_a_day_alone_in_the_future_widens_nothing() -> None:
    found = new_partitions([*range(20_000, 20_090), 24_000], 1, [])
    assert {end - first for first, end in found} == {1}


def test_half_a_century_in_order_makes_a_bounded_number() -> None:
    """A replay, day by day, faster than anything expires."""
    held: list[Span] = []
    for day in range(TODAY - 50 * 365, TODAY):
        held += new_partitions({day}, 1, held)
    assert len(held) < 900
    assert held[: MAX_PARTITION_TABLES - 1] == [(d, d + 1) for d, _ in held[: MAX_PARTITION_TABLES - 1]]


@given(st.lists(st.sets(DAYS, max_size=300), max_size=8), st.integers(1, 9))
def test_every_day_is_in_one_partition(batches: list[set[int]], width: int) -> None:
    """Batch after batch: no two partitions overlap, none is empty, and each day is in one."""
    held: list[Span] = []
    for days in batches:
        made = new_partitions(days, width, held)
        assert made == sorted(made)
        held = sorted([*held, *made])
        assert all(first < end for first, end in held)
        assert all(before[1] <= after[0] for before, after in pairwise(held))
        assert all(any(first <= day < end for first, end in held) for day in days)


@given(st.data())
def test_hostile_days_make_few_tables(data: st.DataObject) -> None:
    """Each batch picks days that nobody holds, as far apart as it likes."""
    held: list[Span] = []
    for _ in range(data.draw(st.integers(1, 25))):
        step, first = data.draw(st.integers(1, 400)), data.draw(st.integers(0, 400))
        made = new_partitions(range(first, TODAY, step), 1, held)
        assert len(made) <= MAX_NEW_TABLES + len(held) + 1
        held = sorted([*held, *made])
    assert len(held) <= 2 * (MAX_PARTITION_TABLES + 16 * WIDEN_EVERY)
