"""Updates the event-time progress of partitions after a batch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from tidemill_processor.batches.batch import Batch
from tidemill_processor.time.watermark import PartitionTime


def observe_batch(
    batch: Batch, partitions: Iterable[PartitionTime], max_advance_ms: int, now_ms: int
) -> dict[int, PartitionTime]:
    """Return the progress of each partition after a batch.

    Args:
        batch: the batch.
        partitions: the progress before the batch.
        max_advance_ms: how far event time may jump ahead (`maxAdvance`).
        now_ms: the wall time (epoch ms).
    """
    latest, progress = batch.latest_times(), {}
    for time in partitions:
        if time.partition not in latest:
            # A partition that receives only invalid events is active too.
            progress[time.partition] = replace(time, last_event_at=now_ms)
            continue
        last = latest[time.partition]
        within_limit = time.maximum is not None and not time.suspects and last <= time.maximum + max_advance_ms
        times = [last] if within_limit else batch.times_of(time.partition)
        progress[time.partition] = time.observe(times, max_advance_ms=max_advance_ms, now_ms=now_ms)
    return progress
