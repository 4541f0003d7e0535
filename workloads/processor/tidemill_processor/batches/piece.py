"""A piece of a micro-batch: records that were decoded together."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from tidemill_contract.events.elements import Origins
from tidemill_processor.batches.batch import INDEX, PARTITION
from tidemill_processor.dead_letters import DeadLetter, Message


@dataclass(frozen=True)
class Piece:
    """A decoded part of a micro-batch, before the transform."""

    size: int
    frame: pl.DataFrame
    messages: Sequence[Message]
    dead_letters: tuple[DeadLetter, ...]
    next_offsets: dict[int, int]
    consumed: dict[int, int]
    arrived: dict[int, int]
    filtered: dict[int, int]
    origins: Origins | None = None

    @property
    def event_count(self) -> int:
        """The number of valid and invalid events."""
        return len(self.messages) if self.origins is None else self.origins.starts[-1]


def partition_progress(messages: Sequence[Message], partitions: list[int]) -> tuple[dict[int, int], ...]:
    """Return three dicts by partition: next offset, number of records, first record's time (epoch ms).

    A negative timestamp is replaced by the current time.
    """
    now_ms = time.time_ns() // 1_000_000
    index = pl.col(INDEX)
    by_partition = pl.DataFrame({PARTITION: partitions}).with_row_index(INDEX).group_by(PARTITION)
    rows = by_partition.agg(pl.len(), index.min().alias("first"), index.max().alias("last")).rows()
    return (
        {p: messages[last].offset() + 1 for p, _, _, last in rows},
        {p: count for p, count, _, _ in rows},
        {p: at if (at := messages[first].timestamp()[1]) >= 0 else now_ms for p, _, first, _ in rows},
    )
