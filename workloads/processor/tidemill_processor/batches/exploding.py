"""Reads records whose array elements become events."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, takewhile
from typing import Any

import polars as pl

from tidemill_contract.events.decoder import DecodedBatch, InvalidEvent
from tidemill_contract.events.elements import ELEMENTS_ATTRIBUTE, Elements, Origins
from tidemill_contract.resource.paths import Steps
from tidemill_contract.resource.spec import PipelineSpec
from tidemill_processor.batches.batch import DATA, ELEMENT, INDEX, MICROS, OFFSET, PARTITION, TIME, Batch
from tidemill_processor.batches.piece import Piece, partition_progress
from tidemill_processor.batches.reader import BatchReader
from tidemill_processor.dead_letters import Message, dead_letter
from tidemill_processor.formats.columns import as_column
from tidemill_processor.formats.registry import Registry
from tidemill_processor.lookups.lookups import Lookups

MAX_BYTES, MIN_BYTES = 1024 * 1024, 16 * 1024
MAX_ELEMENTS = 8_000
WEIGHT_BYTES = 640
"""If raw events are stored, each element of a large record counts as several elements. The factor is the record's size
divided by this many bytes."""


@dataclass(frozen=True)
class _Records:
    """Decoded records whose array elements become events.

    Attributes:
        valid: the indexes of the valid records.
        times: the event times (epoch ms) of all records. Empty if each array element has its own event time.
    """

    messages: Sequence[Message]
    raws: list[bytes]
    events: list[Any]
    valid: list[int]
    arrays: list[list[Any] | None]
    invalid: dict[int, InvalidEvent]
    times: list[int]
    micros: list[int] | None
    ignored: frozenset[int]

    def first(self, number: int) -> _Records:
        valid = self.valid[: bisect_left(self.valid, number)]
        invalid = {index: verdict for index, verdict in self.invalid.items() if index < number}
        return replace(
            self,
            messages=self.messages[:number],
            raws=self.raws[:number],
            valid=valid,
            arrays=self.arrays[: len(valid)],
            invalid=invalid,
            ignored=frozenset(index for index in self.ignored if index < number),
        )


def batch_reader(
    spec: PipelineSpec, *, offsets: bool = False, registry: Registry | None = None, lookups: Lookups | None = None
) -> BatchReader:
    """Return the reader of a pipeline's micro-batches."""
    if spec.source.array is not None:
        return ExplodingReader(spec, lookups=lookups)
    return BatchReader(spec, offsets=offsets, registry=registry, lookups=lookups)


class ExplodingReader(BatchReader):
    """Decodes, validates and transforms micro-batches of a pipeline with an exploded array."""

    def __init__(self, spec: PipelineSpec, *, lookups: Lookups | None = None) -> None:
        """Prepare the decoders of records and elements."""
        super().__init__(spec, offsets=True, lookups=lookups)
        self._elements = self._decoder.elements
        self._steps: Steps = spec.source.array or ()
        self._max_bytes = MIN_BYTES

    def decode(self, messages: Sequence[Message], now_ms: int, first: int = 0) -> Piece:
        """Decode the next records of a batch."""
        return self._decode(messages, now_ms, bounded=False)

    def decode_some(self, messages: Sequence[Message], now_ms: int, first: int = 0) -> tuple[Piece, Sequence[Message]]:
        """Decode the first records, and return the decoded piece and the remaining records."""
        sizes = accumulate(len(m.value() or b"") for m in messages)
        head = messages[: max(1, _count_within(sizes, self._max_bytes))]
        piece = self._decode(head, now_ms, bounded=True)
        return piece, messages[len(piece.messages) :]

    def _decode(self, messages: Sequence[Message], now_ms: int, *, bounded: bool) -> Piece:
        raws = [m.value() or b"" for m in messages]
        largest = max(map(len, raws), default=0)
        decoded = self._decoder.decode_with_elements(raws, now_ms, largest=largest, records=messages)
        elements = None
        if decoded is not None:
            records = self._take_records(messages, raws, decoded, now_ms, bounded=bounded)
            elements = self._elements.validate_together(records.arrays, records.raws, now_ms, largest)
        if elements is None:
            decoded = self._decoder.decode_all(raws, now_ms, largest=largest, records=messages)
            records = self._take_records(messages, raws, decoded, now_ms, bounded=bounded)
            elements = self._elements.decode(records.arrays, now_ms)
        return self._piece(records, elements, now_ms)

    def _take_records(
        self, messages: Sequence[Message], raws: list[bytes], decoded: DecodedBatch, now_ms: int, *, bounded: bool
    ) -> _Records:
        events, invalid = decoded.events, decoded.invalid
        times = [] if self._elements.has_time else self._event_times(messages, decoded, now_ms)
        valid = [index for index, event in enumerate(events) if event is not None]
        arrays = self._decoder.values([events[index] for index in valid], ELEMENTS_ATTRIBUTE)
        records = _Records(messages, raws, events, valid, arrays, invalid, times, decoded.micros, decoded.ignored)
        if not bounded:
            return records
        weights = accumulate(map(self._weight, arrays, (len(raws[index]) for index in valid)))
        fitting = _count_within(weights, MAX_ELEMENTS)
        number = len(raws) if fitting == len(valid) else max(1, valid[fitting])
        # The next piece may have as many bytes as this piece. If no record was left over, the limit doubles.
        size = sum(map(len, raws[:number])) * (2 if number == len(raws) else 1)
        self._max_bytes = min(MAX_BYTES, max(MIN_BYTES, size))
        return records.first(number)

    def _weight(self, array: Sequence[Any] | None, size: int) -> int:
        number = len(array or ())
        return number * max(1, size // WEIGHT_BYTES) if self._keeps_events else number

    def _piece(self, records: _Records, elements: Elements, now_ms: int) -> Piece:
        messages, raws = records.messages, records.raws
        counts = dict(zip(records.valid, elements.counts, strict=True))
        starts = list(accumulate((counts.get(index, 0) for index in range(len(messages))), initial=0))
        origins = Origins(starts, self._steps, self._decoder.document, records.ignored)
        dead = [self._dead_letter_of(messages[i], verdict, now_ms) for i, verdict in records.invalid.items()]
        for index, verdict in elements.invalid.items():
            record, element = origins.locate(index)
            dead.append(dead_letter(messages[record], elements.raws[index], verdict, element=element))
        frame = self._frame(records, elements)
        size = sum(map(len, raws)) + (int(frame[DATA].str.len_bytes().sum()) if self._keeps_events else 0)
        ends, consumed, arrived = partition_progress(messages, [m.partition() for m in messages])
        filtered = dict(Counter(messages[index].partition() for index in records.ignored))
        return Piece(size, frame, messages, tuple(dead), ends, consumed, arrived, filtered, origins)

    def _frame(self, records: _Records, elements: Elements) -> pl.DataFrame:
        events: Sequence[Any] = elements.events
        index = pl.Series(range(len(events)), dtype=pl.UInt32)
        counts = pl.Series(elements.counts, dtype=pl.UInt32)
        record_indexes = pl.Series(range(len(counts)), dtype=pl.UInt32).repeat_by(counts).explode().drop_nulls()
        raws, micros = elements.raws, elements.micros
        if elements.invalid:
            valid = [i for i in range(len(events)) if i not in elements.invalid]
            index, record_indexes = index.gather(valid), record_indexes.gather(valid)
            events, raws = [events[i] for i in valid], [raws[i] for i in valid]
            micros = None if micros is None else [micros[i] for i in valid]
        columns = {name: column.gather(record_indexes) for name, column in self._record_columns(records).items()}
        columns[INDEX] = index
        columns[ELEMENT] = (index - (counts.cum_sum() - counts).gather(record_indexes)).cast(pl.Int64)
        if self._elements.has_time:
            columns[TIME] = pl.Series(self._elements.values(events, self._time_field or ""), dtype=pl.Int64)
            if self._ordered:
                columns[MICROS] = pl.Series(micros or [0] * len(events), dtype=pl.Int64)
        for name, dtype in self._columns.items():
            if name in self._elements.names:
                columns[name] = as_column(name, self._elements.values(events, name), dtype)
        if self._keeps_events:
            texts = self._elements.as_json(events, raws)
            columns[DATA] = pl.Series(list(map(_merge_objects, columns[DATA].to_list(), texts)), dtype=pl.String)
        return pl.DataFrame(columns)

    def _record_columns(self, records: _Records) -> dict[str, pl.Series]:
        valid, events = records.valid, [records.events[index] for index in records.valid]
        messages = [records.messages[index] for index in valid]
        columns = {
            PARTITION: pl.Series([m.partition() for m in messages], dtype=pl.Int32),
            OFFSET: pl.Series([m.offset() for m in messages], dtype=pl.Int64),
        }
        if not self._elements.has_time:
            columns[TIME] = pl.Series([records.times[index] for index in valid], dtype=pl.Int64)
            if self._ordered:
                micros = [0] * len(valid) if records.micros is None else [records.micros[index] for index in valid]
                columns[MICROS] = pl.Series(micros, dtype=pl.Int64)
        for name, dtype in self._columns.items():
            if name not in self._elements.names:
                columns[name] = as_column(name, self._decoder.values(events, name), dtype)
        if self._keeps_events:
            texts = self._decoder.as_json(events, [records.raws[index] for index in valid])
            columns[DATA] = pl.Series(texts, dtype=pl.String)
        return columns

    def _join_pieces(self, pieces: Sequence[Piece]) -> Batch:
        starts, frames, ignored = [0], [], set[int]()
        for piece in pieces:
            assert piece.origins is not None  # noqa: S101 - pieces of this reader have it
            before = starts[-1]
            ignored |= {len(starts) - 1 + index for index in piece.origins.ignored}
            frames.append(piece.frame.with_columns(pl.col(INDEX) + before))
            starts += [before + start for start in piece.origins.starts[1:]]
        batch = super()._join_pieces(pieces)
        frame = pl.concat(frames)
        times = frame.select(TIME, PARTITION, OFFSET)
        origins = Origins(starts, self._steps, self._decoder.document, frozenset(ignored))
        return replace(batch, frame=frame, times=times, origins=origins)


def _count_within(ascending: Iterable[int], limit: int) -> int:
    """Count the leading numbers that do not exceed `limit`."""
    return sum(1 for _ in takewhile(limit.__ge__, ascending))


def _merge_objects(text: str, other: str) -> str:
    return f"{text[:-1]},{other[1:]}" if min(len(text), len(other)) > 2 else max(text, other, key=len)
