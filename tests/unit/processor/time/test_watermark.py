"""Tests of event time: the maxima of partitions, idle partitions, and the watermark."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidemill_contract.duration import parse_ms
from tidemill_contract.grids import Steps
from tidemill_contract.resource.source import EventTimeSpec
from tidemill_processor.time.watermark import STALE_MS, PartitionTime, ReaderTime, advance, closed_until, is_idle

DAY = 86_400_000
T0 = 1_700_000_000_000
IDLE = 30_000


def observe(partition: PartitionTime, *times: int, now: int = T0) -> PartitionTime:
    return partition.observe(times, max_advance_ms=DAY, now_ms=now)


def partition_time(
    partition: int, maximum: int | None, *, last: int = T0, confirmed: int | None = None
) -> PartitionTime:
    return PartitionTime(partition, maximum, (), last, confirmed)


def step(reader: ReaderTime, *partitions: PartitionTime, now: int) -> ReaderTime:
    return advance(reader, partitions, max_disorder_ms=0, idle_timeout_ms=IDLE, now_ms=now)


OBSERVATIONS = [
    ("ordinary events raise the maximum", 100, [50, 200, 150], 200, ()),
    ("a single jump is suspect", 100, [100 + 2 * DAY], 100, (100 + 2 * DAY,)),
    ("an ordinary event clears a suspect", 100, [100 + 2 * DAY, 120], 120, ()),
    ("three jumps in a row count", 100, [3 * DAY, 3 * DAY + 1, 3 * DAY + 2], 3 * DAY + 2, ()),
    (
        "the least of three suspects counts, and times within reach of it",
        100,
        [9 * DAY, 3 * DAY, 3 * DAY + 5],
        3 * DAY + 5,
        (9 * DAY,),
    ),
    ("a first event alone is suspect", None, [T0], None, (T0,)),
    ("three first events confirm each other", None, [T0, T0 + 5, T0 + 3], T0 + 5, ()),
    ("a first outlier does not set the maximum", None, [50 * DAY, 5, 6, 7], 7, ()),
]


@pytest.mark.parametrize(
    ("reason", "before", "times", "maximum", "suspects"), OBSERVATIONS, ids=[o[0] for o in OBSERVATIONS]
)
def test_observed_times_raise_the_maximum_unless_they_are_suspect(
    reason: str, before: int | None, times: list[int], maximum: int | None, suspects: tuple[int, ...]
) -> None:
    after = observe(PartitionTime(0, before), *times)
    assert (maximum, suspects) == (after.maximum, after.suspects)


def test_a_jump_of_event_time_counts_if_the_wall_clock_advanced_as_far() -> None:
    partition = partition_time(0, T0, last=T0)
    assert observe(partition, T0 + 3 * DAY, now=T0 + 3 * DAY).maximum == T0 + 3 * DAY


def test_suspects_are_kept_between_batches() -> None:
    partition = PartitionTime(0, 100)
    for time in (3 * DAY, 3 * DAY + 1, 3 * DAY + 2):
        partition = observe(partition, time)
    assert partition.maximum == 3 * DAY + 2


@given(st.lists(st.integers(0, 10 * DAY), min_size=1, max_size=30), st.data())
def test_the_maximum_never_falls_and_does_not_depend_on_batches(times: list[int], data: st.DataObject) -> None:
    """The wall clock stands still in this test."""
    start = PartitionTime(0, None, (), T0)
    whole = observe(start, *times)
    cut = data.draw(st.integers(0, len(times)))
    first = observe(start, *times[:cut])
    halves = observe(first, *times[cut:])
    assert (whole.maximum, whole.suspects) == (halves.maximum, halves.suspects)
    assert (first.maximum or 0) <= (halves.maximum or 0)


def test_the_watermark_is_the_least_maximum_of_active_partitions() -> None:
    reader = step(ReaderTime(), partition_time(0, 5_000), partition_time(1, 3_000), now=T0 + 1)
    assert reader.watermark == 3_000


def test_maxdisorder_is_subtracted_from_the_watermark() -> None:
    reader = advance(ReaderTime(), [partition_time(0, 9_000)], max_disorder_ms=5_000, idle_timeout_ms=IDLE, now_ms=T0)
    assert reader.watermark == 4_000


def test_the_watermark_never_falls() -> None:
    reader = step(ReaderTime(watermark=8_000, active_since=T0), partition_time(0, 5_000), now=T0 + 1)
    assert reader.watermark == 8_000


IDLE_ROWS = [
    ("read to its end and silent", 0, IDLE, True),
    ("silent, but not for long enough", 0, IDLE - 1, False),
    ("never read to its end: events may wait", None, IDLE, False),
    ("confirmed too long ago: its processor may have stopped", -STALE_MS - 1, IDLE, False),
]


@pytest.mark.parametrize(("reason", "confirmed", "silent", "expected"), IDLE_ROWS, ids=[r[0] for r in IDLE_ROWS])
def test_a_partition_is_idle_if_read_to_its_end_and_silent(
    reason: str, confirmed: int | None, silent: int, expected: bool
) -> None:
    now = T0 + silent
    partition = partition_time(0, 1, last=T0, confirmed=None if confirmed is None else now + confirmed)
    assert expected is is_idle(partition, ReaderTime(active_since=T0 - 1), idle_timeout_ms=IDLE, now_ms=now)


def test_a_partition_is_not_idle_if_its_end_was_confirmed_before_its_last_event() -> None:
    partition = partition_time(0, 1, last=T0, confirmed=T0 - 1)
    assert not is_idle(partition, ReaderTime(active_since=0), idle_timeout_ms=0, now_ms=T0 + 1)


def test_a_partition_with_a_backlog_holds_the_watermark_back() -> None:
    reader = ReaderTime(active_since=T0)
    for minute in range(1, 600):
        now = T0 + minute * 60_000
        reader = step(
            reader, partition_time(0, 10_000_000 + minute, last=now, confirmed=now), partition_time(1, 500), now=now
        )
    assert reader.watermark == 500


def test_the_idle_timeout_begins_when_the_reader_becomes_active() -> None:
    """A partition that was empty for hours before a replay has the whole idleTimeout for its first event."""
    empty = PartitionTime(1, None, (), None, T0 + 1_000)
    reader = step(ReaderTime(), partition_time(0, 7_000, last=T0, confirmed=None), empty, now=T0 + 1_000)
    assert reader.watermark is None
    late = T0 + IDLE + 1
    reader = step(reader, partition_time(0, 9_000, last=late), replace(empty, end_confirmed_at=late), now=late)
    assert (reader.watermark, reader.candidate) == (None, 9_000)


def test_a_candidate_counts_after_idle_partitions_were_confirmed_again() -> None:
    later = T0 + IDLE + 1_000
    quiet = partition_time(1, 100, last=T0, confirmed=later)
    busy = partition_time(0, 9_000, last=later)
    reader = step(ReaderTime(active_since=T0), busy, quiet, now=later)
    assert reader.watermark is None
    reader = step(reader, busy, quiet, now=later + 10)
    assert reader.watermark is None, "the idle partition was confirmed before the candidate was chosen"
    reader = step(reader, busy, replace(quiet, end_confirmed_at=later + 500), now=later + 600)
    assert reader.watermark == 9_000


def test_events_of_an_idle_partition_withdraw_the_candidate() -> None:
    later = T0 + IDLE + 1_000
    busy = partition_time(0, 9_000, last=later)
    reader = step(ReaderTime(active_since=T0), busy, partition_time(1, 100, last=T0, confirmed=later), now=later)
    woken = partition_time(1, 200, last=later + 100)
    assert step(reader, busy, woken, now=later + 200).watermark == 200


def test_the_watermark_advances_with_the_wall_clock_while_all_partitions_are_idle() -> None:
    def quiet(now: int) -> tuple[PartitionTime, PartitionTime]:
        return partition_time(0, 5_000, last=T0, confirmed=now), partition_time(1, 2_000, last=T0, confirmed=now)

    at = T0 + IDLE
    reader = step(ReaderTime(active_since=T0), *quiet(at), now=at)
    assert reader.watermark == 5_000
    reader = step(reader, *quiet(at + 60_000), now=at + 60_000)
    assert reader.watermark == 65_000


def test_the_idle_timeout_of_all_partitions_restarts_when_one_partition_gets_events() -> None:
    at = T0 + IDLE
    reader = step(
        ReaderTime(active_since=T0),
        partition_time(0, 5_000, confirmed=at),
        partition_time(1, 2_000, confirmed=at),
        now=at,
    )
    woken = at + 100_000
    reader = step(
        reader,
        partition_time(0, 500_000, last=woken, confirmed=woken),
        partition_time(1, 2_000, last=T0, confirmed=woken + 1),
        now=woken + 1,
    )
    assert reader.watermark == 5_000, "events of the other partition may follow soon"


def test_a_single_first_event_counts_after_the_idle_timeout() -> None:
    at = T0 + IDLE
    lone = PartitionTime(0, None, (4_000,), T0, at)
    reader = step(ReaderTime(active_since=T0), lone, now=at)
    assert reader.watermark == 4_000


def test_a_partition_without_events_does_not_change_the_watermark() -> None:
    assert ReaderTime() == step(ReaderTime(), PartitionTime(0), now=T0)


CLOSINGS = [
    ("a window ends at the watermark", 120_000, 0, 120_000),
    ("the watermark is one millisecond short", 119_999, 0, 60_000),
    ("grace keeps the window open", 120_000, 1, 60_000),
    ("grace has passed", 125_000, 5_000, 120_000),
]


@pytest.mark.parametrize(("reason", "watermark", "grace", "expected"), CLOSINGS, ids=[c[0] for c in CLOSINGS])
def test_windows_close_if_they_end_before_the_watermark_minus_grace(
    reason: str, watermark: int, grace: int, expected: int
) -> None:
    assert expected == closed_until(watermark, grace_ms=grace, grid=Steps(60_000))


MINUTE = 60_000
DEFAULT_IDLE_MS = parse_ms(EventTimeSpec().idle_timeout)
MAX_DISORDER_MS = parse_ms(EventTimeSpec().max_disorder)


@given(
    period=st.integers(1, 15 * 60).map(lambda seconds: seconds * 1000),
    first=st.integers(0, 15 * 60).map(lambda seconds: seconds * 1000),
    delay=st.integers(0, 10 * DAY),
    spacing=st.sampled_from([1_000, 7_000, MINUTE]),
    partitions=st.integers(1, 3),
    data=st.data(),
)
@settings(max_examples=60)
def test_a_sender_that_buffers_loses_no_events_with_default_settings(
    period: int, first: int, delay: int, spacing: int, partitions: int, data: st.DataObject
) -> None:
    """Uploads are in order, with pauses of up to 15 minutes. The first upload may be short."""
    rows = [PartitionTime(number) for number in range(partitions)]
    reader, sent, wall = ReaderTime(), T0 - delay, T0
    for upload in range(4):
        until = sent + (first if upload == 0 else period)
        chosen = data.draw(st.lists(st.integers(0, partitions - 1), min_size=1, max_size=4))
        times = list(range(sent, until + 1, spacing))
        for number, place in enumerate(chosen):
            piece = times[number * len(times) // len(chosen) : (number + 1) * len(times) // len(chosen)]
            assert all(reader.watermark is None or time >= reader.watermark for time in piece)
            rows[place] = rows[place].observe(piece, max_advance_ms=DAY, now_ms=wall)
        sent = times[-1] + spacing
        for _ in range(period // 5_000 + 2):
            wall += 5_000
            rows = [replace(row, end_confirmed_at=wall) for row in rows]
            reader = advance(
                reader, rows, max_disorder_ms=MAX_DISORDER_MS, idle_timeout_ms=DEFAULT_IDLE_MS, now_ms=wall
            )


def test_the_last_windows_of_a_replay_close_within_the_documented_bound() -> None:
    """The bound is idleTimeout, maxDisorder, the window's length, its grace, and a second for a pass."""
    last, size, grace = 1_400_000_000_000, 3_600_000, MINUTE
    row = PartitionTime(0).observe([last - 2, last - 1, last], max_advance_ms=DAY, now_ms=T0)
    reader, wall = ReaderTime(), T0
    bound = T0 + DEFAULT_IDLE_MS + MAX_DISORDER_MS + size + grace + 1_000
    end = last // size * size + size
    while wall < bound:
        wall += 500
        row = replace(row, end_confirmed_at=wall)
        reader = advance(reader, [row], max_disorder_ms=MAX_DISORDER_MS, idle_timeout_ms=DEFAULT_IDLE_MS, now_ms=wall)
    assert reader.watermark is not None
    assert closed_until(reader.watermark, grace_ms=grace, grid=Steps(size)) >= end
