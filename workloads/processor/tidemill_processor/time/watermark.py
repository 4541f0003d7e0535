"""Computes the greatest event time of each partition and the watermark of the pipeline.

Event times are epoch milliseconds. Wall times are milliseconds of the database's clock.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from tidemill_contract.grids import Grid

CONFIRMATIONS = 3
"""After this many suspect event times in a row, the smallest becomes a new base.

Times that exceed this base by at most the allowed advance are accepted too."""

STALE_MS = 10_000
"""A partition counts as idle only if the partition was found empty in the last STALE_MS milliseconds."""


@dataclass(frozen=True)
class PartitionTime:
    """The progress of one partition in event time, from a row of `_offsets`.

    Attributes:
        maximum: the greatest accepted event time.
        suspects: event times that are too far ahead to be accepted yet, in order of arrival.
        last_event_at: the wall time at which events last arrived.
        end_confirmed_at: the wall time at which the partition last had no unread records.
    """

    partition: int
    maximum: int | None = None
    suspects: tuple[int, ...] = ()
    last_event_at: int | None = None
    end_confirmed_at: int | None = None

    def observe(self, times: Sequence[int], *, max_advance_ms: int, now_ms: int) -> PartitionTime:
        """Return the progress after events with these event times (in offset order) arrived at wall time `now_ms`.

        The limit for an event time is `maximum` plus maxAdvance plus the time since events last arrived. An event time
        beyond the limit is suspect. `maximum` also advances when CONFIRMATIONS event times in a row are suspect. An
        event time within the limit clears the list of suspect event times.
        """
        if not times:
            return self
        elapsed = max(0, now_ms - self.last_event_at) if self.last_event_at is not None else 0
        allowed_ms = max_advance_ms + elapsed
        maximum, suspects = self.maximum, self.suspects
        if maximum is not None and max(times) <= maximum + allowed_ms:
            return replace(self, maximum=max(maximum, max(times)), suspects=(), last_event_at=now_ms)
        for time in times:
            if maximum is not None and time <= maximum + allowed_ms:
                maximum, suspects = max(maximum, time), ()
                continue
            suspects = (*suspects, time)
            if len(suspects) >= CONFIRMATIONS:
                maximum = min(suspects)
                accepted = [s for s in suspects if s <= maximum + allowed_ms]
                maximum = max(accepted)
                suspects = tuple(s for s in suspects if s > maximum + allowed_ms)
        return replace(self, maximum=maximum, suspects=suspects, last_event_at=now_ms)


@dataclass(frozen=True)
class ReaderTime:
    """The event-time clock of the pipeline, from a row of `_readers`.

    Attributes:
        watermark: the time before which no more events are expected.
        candidate: the next watermark, which is used after a check that idle partitions are empty.
        active_since: the wall time at which the current period of activity began.
        idle_since: the wall time since which all partitions are idle.
        idle_base: the watermark at `idle_since`.
    """

    watermark: int | None = None
    candidate: int | None = None
    candidate_at: int | None = None
    active_since: int | None = None
    idle_since: int | None = None
    idle_base: int | None = None


def is_idle(partition: PartitionTime, reader: ReaderTime, *, idle_timeout_ms: int, now_ms: int) -> bool:
    """Return whether a partition has no unread records and has received no event for idleTimeout."""
    confirmed = partition.end_confirmed_at
    if confirmed is None or now_ms - confirmed > STALE_MS or confirmed < (partition.last_event_at or 0):
        return False
    silent_since = max(partition.last_event_at or 0, reader.active_since or 0)
    return now_ms - silent_since >= idle_timeout_ms


def advance(
    reader: ReaderTime, partitions: Iterable[PartitionTime], *, max_disorder_ms: int, idle_timeout_ms: int, now_ms: int
) -> ReaderTime:
    """Return the new state of the event-time clock at wall time `now_ms`.

    The watermark is the smallest `maximum` of all partitions that are not idle, minus maxDisorder. While an active
    (not idle) partition has no accepted event time, the watermark does not advance.

    Before the watermark passes idle partitions, a check must find them still empty. If all partitions are idle, the
    watermark advances with the wall clock. The start is the greatest event time.
    """
    rows = list(partitions)
    latest = max((p.last_event_at for p in rows if p.last_event_at is not None), default=None)
    if latest is None:
        return reader
    if reader.active_since is None:
        reader = replace(reader, active_since=min(p.last_event_at for p in rows if p.last_event_at is not None))
    if reader.idle_since is not None and latest > reader.idle_since:
        reader = replace(
            reader, active_since=latest, idle_since=None, idle_base=None, candidate=None, candidate_at=None
        )
    idle = [p for p in rows if is_idle(p, reader, idle_timeout_ms=idle_timeout_ms, now_ms=now_ms)]
    if len(idle) == len(rows):
        return _all_idle(reader, rows, max_disorder_ms=max_disorder_ms, now_ms=now_ms)
    idle_partitions = {p.partition for p in idle}
    maxima = [p.maximum for p in rows if p.partition not in idle_partitions]
    reader = replace(reader, idle_since=None, idle_base=None)
    if any(m is None for m in maxima):
        return replace(reader, candidate=None, candidate_at=None)
    target = min(m for m in maxima if m is not None) - max_disorder_ms
    if not idle:
        return replace(reader, watermark=_later(reader.watermark, target), candidate=None, candidate_at=None)
    if reader.candidate is None or reader.candidate_at is None:
        return replace(reader, candidate=target, candidate_at=now_ms)
    if all((p.end_confirmed_at or 0) > reader.candidate_at for p in idle):
        confirmed = min(reader.candidate, target)
        return replace(reader, watermark=_later(reader.watermark, confirmed), candidate=target, candidate_at=now_ms)
    return reader


def _all_idle(reader: ReaderTime, rows: Sequence[PartitionTime], *, max_disorder_ms: int, now_ms: int) -> ReaderTime:
    if reader.idle_since is None or reader.idle_base is None:
        # Use each partition's greatest accepted event time. If a partition has none, use its smallest suspect event
        # time.
        times = [p.maximum if p.maximum is not None else min(p.suspects, default=None) for p in rows]
        base = max((t for t in times if t is not None), default=None)
        if base is None:
            return reader
        reader = replace(reader, idle_since=now_ms, idle_base=_later(reader.watermark, base - max_disorder_ms))
    assert reader.idle_base is not None  # noqa: S101 - for the type checker
    assert reader.idle_since is not None  # noqa: S101
    return replace(
        reader,
        watermark=_later(reader.watermark, reader.idle_base + now_ms - reader.idle_since),
        candidate=None,
        candidate_at=None,
    )


def _later(watermark: int | None, reached: int) -> int:
    return reached if watermark is None else max(watermark, reached)


def closed_until(watermark_ms: int, *, grace_ms: int, grid: Grid) -> int:
    """Return the end of the last window that this watermark closes."""
    return grid.start_of(watermark_ms - grace_ms)
