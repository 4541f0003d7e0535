"""Event time, purely: how far each partition has come, and how far the whole pipeline's watermark may go.

All event times are epoch milliseconds; all wall times are milliseconds of the database's clock, the one clock that
every replica shares. Nothing here reads a clock.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

CONFIRMATIONS = 3
"""A jump beyond maxAdvance is believed once this many events in a row lie beyond it."""

STALE_MS = 10_000
"""A confirmation that a partition was read to its end counts for this long; owners renew it about every second."""


@dataclass(frozen=True)
class PartitionTime:
    """What is known of one partition's time; a row of `_offsets`.

    Attributes:
        maximum: greatest event time believed.
        suspects: event times, in order of arrival, that jumped too far to be believed yet.
        last_event_at: wall time when events last came.
        end_confirmed_at: wall time at which everything then in the partition had been read.
    """

    partition: int
    maximum: int | None = None
    suspects: tuple[int, ...] = ()
    last_event_at: int | None = None
    end_confirmed_at: int | None = None

    def observe(self, times: Sequence[int], *, max_advance_ms: int, now_ms: int) -> PartitionTime:
        """The partition's time after events with these event times, in offset order, came at wall time `now_ms`.

        A time may lead the maximum by maxAdvance plus the wall time since events last came. One beyond that is a
        suspect: an ordinary event after it clears it, further ones beyond confirm it.
        """
        if not times:
            return self
        elapsed = max(0, now_ms - self.last_event_at) if self.last_event_at is not None else 0
        reach = max_advance_ms + elapsed
        maximum, suspects = self.maximum, self.suspects
        if maximum is not None and max(times) <= maximum + reach:
            return replace(self, maximum=max(maximum, max(times)), suspects=(), last_event_at=now_ms)
        for time in times:
            if maximum is not None and time <= maximum + reach:
                maximum, suspects = max(maximum, time), ()
                continue
            suspects = (*suspects, time)
            if len(suspects) >= CONFIRMATIONS:
                maximum = min(suspects)
                believed = [s for s in suspects if s <= maximum + reach]
                maximum = max(believed)
                suspects = tuple(s for s in suspects if s > maximum + reach)
        return replace(self, maximum=maximum, suspects=suspects, last_event_at=now_ms)


@dataclass(frozen=True)
class ReaderTime:
    """The pipeline's event-time clock; a row of `_readers`.

    Attributes:
        watermark: no event before it is expected; never falls.
        candidate / candidate_at: a watermark that idle partitions have yet to confirm, and since when it stands.
        active_since: when the present spell of activity began; silence is counted from here at the earliest.
        idle_since / idle_base: since when all partitions are idle, and the watermark that this began with.
    """

    watermark: int | None = None
    candidate: int | None = None
    candidate_at: int | None = None
    active_since: int | None = None
    idle_since: int | None = None
    idle_base: int | None = None


def is_idle(partition: PartitionTime, reader: ReaderTime, *, idle_timeout_ms: int, now_ms: int) -> bool:
    """Whether a partition, read to its end as of just now, has been silent for idleTimeout of the present activity."""
    confirmed = partition.end_confirmed_at
    if confirmed is None or now_ms - confirmed > STALE_MS or confirmed < (partition.last_event_at or 0):
        return False
    silent_since = max(partition.last_event_at or 0, reader.active_since or 0)
    return now_ms - silent_since >= idle_timeout_ms


def advance(
    reader: ReaderTime, partitions: Iterable[PartitionTime], *, max_disorder_ms: int, idle_timeout_ms: int, now_ms: int
) -> ReaderTime:
    """The clock at wall time `now_ms`.

    1. Any partition that is not idle holds the watermark at its maximum less maxDisorder; one that has brought nothing
       believable yet holds it where it is.
    2. Partitions left out as idle must first confirm, after the candidate was taken, that they still have nothing:
       else a replay that fills partitions one after the other would outrun those that it comes to last.
    3. When all are idle, the watermark goes on with the wall clock from the greatest time seen.
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
    reached = min(m for m in maxima if m is not None) - max_disorder_ms
    if not idle:
        return replace(reader, watermark=_later(reader.watermark, reached), candidate=None, candidate_at=None)
    if reader.candidate is None or reader.candidate_at is None:
        return replace(reader, candidate=reached, candidate_at=now_ms)
    if all((p.end_confirmed_at or 0) > reader.candidate_at for p in idle):
        confirmed = min(reader.candidate, reached)
        return replace(reader, watermark=_later(reader.watermark, confirmed), candidate=reached, candidate_at=now_ms)
    return reader


def _all_idle(reader: ReaderTime, rows: Sequence[PartitionTime], *, max_disorder_ms: int, now_ms: int) -> ReaderTime:
    if reader.idle_since is None or reader.idle_base is None:
        # Silence confirms a first event that had nothing to be measured against.
        times = [p.maximum if p.maximum is not None else min(p.suspects, default=None) for p in rows]
        base = max((t for t in times if t is not None), default=None)
        if base is None:
            return reader
        reader = replace(reader, idle_since=now_ms, idle_base=_later(reader.watermark, base - max_disorder_ms))
    assert reader.idle_base is not None  # noqa: S101 - told to the type checker
    assert reader.idle_since is not None  # noqa: S101
    return replace(
        reader,
        watermark=_later(reader.watermark, reader.idle_base + now_ms - reader.idle_since),
        candidate=None,
        candidate_at=None,
    )


def _later(watermark: int | None, reached: int) -> int:
    return reached if watermark is None else max(watermark, reached)


def closed_until(watermark_ms: int, *, grace_ms: int, pane_ms: int) -> int:
    """The end of the last window that a watermark closes: window ends are multiples of `pane_ms` since the epoch."""
    return (watermark_ms - grace_ms) // pane_ms * pane_ms
