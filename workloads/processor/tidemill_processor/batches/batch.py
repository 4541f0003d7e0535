"""A micro-batch: a data frame of valid events, and the dead letters of invalid events."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import polars as pl

from tidemill_contract.events.decoder import InvalidEvent, Reason
from tidemill_contract.events.elements import Origins
from tidemill_processor.dead_letters import DeadLetter, Message, dead_letter

TIME, PARTITION, OFFSET, INDEX, DATA, MICROS, ELEMENT = "_t", "_p", "_o", "_i", "_data", "_us", "_n"
"""Names of frame columns besides the fields.

`_t` is the event time (epoch ms), `_p` the Kafka partition, `_o` the offset, and `_i` the index in the batch. `_data`
is the event as JSON, if raw events are stored. `_us` is the microseconds of the event time beyond `_t`. `_n` is the
index in an exploded array.
"""


@dataclass(frozen=True)
class Batch:
    """Decoded records that are stored in one transaction.

    Attributes:
        times: the event times and partitions of all valid events, in the order of consumption.
        next_offsets: the offset after the last record, by partition.
        arrived: when the first record arrived in Kafka (epoch ms), by partition.
        origins: the record and array element of each event, or None if each record is one event.
    """

    frame: pl.DataFrame
    times: pl.DataFrame
    messages: Sequence[Message]
    dead_letters: tuple[DeadLetter, ...]
    next_offsets: dict[int, int]
    consumed: dict[int, int]
    filtered: dict[int, int]
    arrived: dict[int, int]
    origins: Origins | None = None

    @property
    def invalid_counts(self) -> Counter[int]:
        """The number of invalid events by partition."""
        return Counter(letter.partition for letter in self.dead_letters)

    def latest_times(self) -> dict[int, int]:
        """Return the greatest event time (epoch ms) by partition."""
        latest = self.times.group_by(PARTITION).agg(pl.col(TIME).max())
        return dict(latest.iter_rows())

    def times_of(self, partition: int) -> list[int]:
        """Return the event times (epoch ms) of a partition in offset order."""
        times = self.times.filter(pl.col(PARTITION) == partition)
        if self.origins is not None:
            times = times.group_by(OFFSET, maintain_order=True).agg(pl.col(TIME).max())
        return times[TIME].to_list()

    def message(self, index: int) -> Message:
        """Return the record of an event."""
        return self.messages[index if self.origins is None else self.origins.locate(index)[0]]

    def element_index(self, index: int) -> int | None:
        """Return an event's index in the exploded array, or None if the pipeline explodes no array."""
        return None if self.origins is None else self.origins.locate(index)[1]

    def dead_letter_for(
        self,
        index: int,
        verdict: InvalidEvent,
        *,
        aggregation: str = "",
        event_time: int | None = None,
        windows: tuple[int, ...] | None = None,
    ) -> DeadLetter:
        """Return a dead letter for a valid event that is not counted, such as a late event."""
        message, element = self.message(index), self.element_index(index)
        value = message.value() or b""
        if self.origins is not None and element is not None:
            value = self.origins.text(value, element)
        return dead_letter(
            message, value, verdict, element=element, aggregation=aggregation, event_time=event_time, windows=windows
        )

    def without(self, partitions: Collection[int]) -> Batch:
        """Return the batch without the records of `partitions`."""
        removed = list(partitions)

        def keep(values: dict[int, int]) -> dict[int, int]:
            return {p: v for p, v in values.items() if p not in partitions}

        return replace(
            self,
            frame=self.frame.filter(~pl.col(PARTITION).is_in(removed)),
            times=self.times.filter(~pl.col(PARTITION).is_in(removed)),
            dead_letters=tuple(letter for letter in self.dead_letters if letter.partition not in partitions),
            next_offsets=keep(self.next_offsets),
            consumed=keep(self.consumed),
            filtered=keep(self.filtered),
            arrived=keep(self.arrived),
        )

    def before_offsets(self, ends: Mapping[int, int]) -> Batch:
        """Return the part of the batch before the offsets in `ends` (by partition)."""
        shortened = {p: end for p, end in ends.items() if end < self.next_offsets[p]}
        if not shortened:
            return self
        before = pl.col(OFFSET) < pl.col(PARTITION).replace_strict(dict(ends), default=2**63 - 1, return_dtype=pl.Int64)
        frame = self.frame.filter(before)
        dead_letters = tuple(letter for letter in self.dead_letters if letter.offset < ends[letter.partition])
        record_counts = Counter(m.partition() for m in self.messages if m.offset() < ends[m.partition()])
        event_counts, origins = record_counts, self.origins
        if origins is not None:
            event_counts = Counter()
            for index, (m, (start, end)) in enumerate(zip(self.messages, pairwise(origins.starts), strict=True)):
                if m.offset() < ends[m.partition()]:
                    event_counts[m.partition()] += 1 if index in origins.ignored else end - start
        valid = Counter(frame[PARTITION].to_list())
        invalid = Counter(letter.partition for letter in dead_letters if origins is None or letter.element is not None)
        return replace(
            self,
            frame=frame,
            dead_letters=dead_letters,
            next_offsets={**self.next_offsets, **shortened},
            consumed={p: record_counts[p] for p in self.consumed},
            filtered={p: event_counts[p] - valid[p] - invalid[p] for p in self.consumed},
        )

    def refuse(self, indexes: Collection[int], reason: Reason, detail: str) -> Batch:
        """Return the batch with the events at `indexes` turned into dead letters."""
        letters = tuple(self.dead_letter_for(i, InvalidEvent(reason, None, detail)) for i in indexes)
        return replace(
            self, frame=self.frame.filter(~pl.col(INDEX).is_in(list(indexes))), dead_letters=self.dead_letters + letters
        )
