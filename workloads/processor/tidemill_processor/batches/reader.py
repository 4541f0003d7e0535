"""Reads micro-batches: decodes, validates and transforms Kafka records."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import Any

import polars as pl

from tidemill_contract.events import quarantine
from tidemill_contract.events.decoder import QUARANTINE_PREFIX, DecodedBatch, InvalidEvent, Reason
from tidemill_contract.events.event_errors import TOMBSTONE_MESSAGE
from tidemill_contract.events.fields import MAX_KEY_BYTES
from tidemill_contract.events.formats.framing import FRAME_BYTES
from tidemill_contract.events.json_fields import JSON
from tidemill_contract.events.records import RecordDecoder
from tidemill_contract.expressions.compiler import POLARS_TYPES, compile_transform, derived_types
from tidemill_contract.functions.partials import field_types, fields_of, needs_event_order
from tidemill_contract.resource.spec import PipelineSpec
from tidemill_processor.batches.batch import DATA, INDEX, MICROS, OFFSET, PARTITION, TIME, Batch
from tidemill_processor.batches.piece import Piece, partition_progress
from tidemill_processor.conditions import condition_fields, conditional_columns
from tidemill_processor.dead_letters import DeadLetter, Message, dead_letter
from tidemill_processor.formats.columns import as_column
from tidemill_processor.formats.readers import schema_reader
from tidemill_processor.formats.registry import Registry
from tidemill_processor.lookups.lookups import Lookups


class BatchReader:
    """Decodes, validates and transforms micro-batches of one pipeline."""

    def __init__(
        self,
        spec: PipelineSpec,
        *,
        offsets: bool = False,
        registry: Registry | None = None,
        lookups: Lookups | None = None,
    ) -> None:
        """Create the reader.

        Args:
            spec: the pipeline's spec.
            offsets: whether frames always contain the offsets of records (column `_o`).
            registry: the client of the schema registry, or None if the record format needs no registry.
            lookups: the lookups of the pipeline, or None if the pipeline has no lookup.
        """
        self._lookups = lookups
        self._ordered = any(needs_event_order(m) for a in spec.aggregations for m in a.metrics)
        # In JSON topics, ingest marks an invalid event with a special first byte.
        self._has_quarantine_marks = spec.source.record_format.type == "json"
        derived = derived_types(spec)
        conditional = conditional_columns(spec, field_types(spec, derived))
        self._transform = replace(compile_transform(spec), after_filter=conditional)
        self._time_field = spec.source.event_time.field
        no_expressions = spec.transform.filter is None and not spec.transform.derive
        self._transforms = not no_expressions or bool(conditional) or bool(spec.lookups)
        self._filters = spec.transform.filter is not None
        self._keeps_events = spec.events.store
        self._needs_offsets = offsets or self._ordered or self._keeps_events
        self._derived_keys = [name for name in derived if name in spec.group_columns and derived[name] == "string"]
        read_fields: set[str | None] = {field for a in spec.aggregations for m in a.metrics for field in fields_of(m)}
        read_fields |= {rule.field for rule in spec.anomalies}
        read_fields |= {spec.source.dedupe.field} if spec.source.dedupe is not None else set()
        read_fields |= spec.group_columns | condition_fields(spec) | {lookup.on for lookup in spec.lookups or ()}
        # Only pipelines without expressions can leave out unused fields, because an expression may read any field.
        needed = [f for f in spec.source.fields if f.type != JSON and (f.name in read_fields or not no_expressions)]
        self._columns = {f.name: POLARS_TYPES.get(f.kind, pl.List(pl.String)) for f in needed}
        needed_names = None if self._keeps_events else self._columns.keys()
        make_reader = partial(schema_reader, spec, exact=self._ordered, needed=needed_names)
        self._schemas = None if registry is None else make_reader(registry)
        self._decoder = RecordDecoder(spec, exact=self._ordered, reader=self._schemas)

    def unknown_schema_offsets(self, messages: Sequence[Message]) -> dict[int, int]:
        """Return the offset of each partition's first record whose schema is still unknown."""
        offsets: dict[int, int] = {}
        if self._schemas is not None:
            frames = self._schemas.unavailable_frames(m.value() or b"" for m in messages)
            for message in messages:
                if (message.value() or b"")[:FRAME_BYTES] in frames:
                    offsets.setdefault(message.partition(), message.offset())
        return offsets

    def read(self, messages: Sequence[Message], now_ms: int) -> Batch:
        """Decode records of one or several partitions in the order of consumption."""
        pieces: list[Piece] = []
        while messages or not pieces:
            piece, messages = self.decode_some(messages, now_ms, sum(piece.event_count for piece in pieces))
            pieces.append(piece)
        return self.join(pieces)

    def decode_some(self, messages: Sequence[Message], now_ms: int, first: int = 0) -> tuple[Piece, Sequence[Message]]:
        """Decode all records. Return the decoded piece and an empty sequence, because no records remain."""
        return self.decode(messages, now_ms, first), ()

    def decode(self, messages: Sequence[Message], now_ms: int, first: int = 0) -> Piece:
        """Decode records into a piece of a batch.

        Raises:
            RegistryUnavailableError: the registry does not answer, and a record's schema is still unknown.
        """
        raws = [m.value() or b"" for m in messages]
        largest = max(map(len, raws), default=0)
        decoded = self._decoder.decode_all(raws, now_ms, largest=largest, records=messages)
        events, invalid, micros = decoded.events, decoded.invalid, decoded.micros
        times = self._event_times(messages, decoded, now_ms)
        partitions = [m.partition() for m in messages]
        ends, consumed, arrived = partition_progress(messages, partitions)
        dead = tuple(self._dead_letter_of(messages[i], verdict, now_ms) for i, verdict in invalid.items())
        valid: list[Any] = events
        index: Sequence[int] = range(len(messages))
        filtered: dict[int, int] = {}
        if invalid or decoded.ignored:
            filtered = dict(Counter(partitions[i] for i in decoded.ignored))
            index = [i for i in index if i not in invalid and i not in decoded.ignored]
            valid = [events[i] for i in index]
            times, partitions = [times[i] for i in index], [partitions[i] for i in index]
        columns: list[pl.Series] = [
            pl.Series(TIME, times, dtype=pl.Int64),
            pl.Series(PARTITION, partitions, dtype=pl.Int32),
            pl.Series(INDEX, index, dtype=pl.UInt32) + first,
        ]
        if self._ordered:
            micros_column = [0] * len(valid) if micros is None else [micros[i] for i in index]
            columns.append(pl.Series(MICROS, micros_column, dtype=pl.Int64))
        if self._needs_offsets:
            columns.append(pl.Series(OFFSET, [messages[i].offset() for i in index], dtype=pl.Int64))
        for name, dtype in self._columns.items():
            columns.append(as_column(name, self._decoder.values(valid, name), dtype))
        if self._keeps_events:
            columns.append(pl.Series(DATA, self._decoder.as_json(valid, [raws[i] for i in index]), dtype=pl.String))
        size = sum(map(len, raws)) if largest > MAX_KEY_BYTES else 0
        return Piece(size, pl.DataFrame(columns), messages, dead, ends, consumed, arrived, filtered)

    def _dead_letter_of(self, message: Message, verdict: InvalidEvent, now_ms: int) -> DeadLetter:
        value = message.value()
        if value is None:
            deleted = verdict.reason is Reason.DELETED
            return dead_letter(
                message, b"", verdict if deleted else InvalidEvent(verdict.reason, None, TOMBSTONE_MESSAGE)
            )
        if self._has_quarantine_marks and value.startswith(QUARANTINE_PREFIX):
            # Use the record's timestamp as the current time, because ingest validated the event at that time.
            time_ms = message.timestamp()[1]
            refusal = partial(self._decoder.refusal, now_ms=time_ms if time_ms > 0 else now_ms, record=message)
            original_verdict = quarantine.read_mark(value, message.headers() or (), refusal)
            if original_verdict is not None:
                return dead_letter(message, value[len(QUARANTINE_PREFIX) :], original_verdict)
        return dead_letter(message, value, verdict)

    def join(self, pieces: Sequence[Piece]) -> Batch:
        """Join decoded pieces into a batch, and apply the transform."""
        batch = self._join_pieces(pieces)
        return self._transform_batch(batch) if self._transforms else batch

    def _join_pieces(self, pieces: Sequence[Piece]) -> Batch:
        frame = pl.concat([piece.frame for piece in pieces])
        next_offsets: dict[int, int] = {}
        arrived: dict[int, int] = {}
        consumed: Counter[int] = Counter()
        filtered: Counter[int] = Counter()
        for piece in pieces:
            filtered.update(piece.filtered)
            arrived = piece.arrived | arrived
            next_offsets |= piece.next_offsets
            consumed.update(piece.consumed)
        return Batch(
            frame=frame,
            times=frame.select(TIME, PARTITION),
            messages=list(chain.from_iterable(piece.messages for piece in pieces)),
            dead_letters=tuple(chain.from_iterable(piece.dead_letters for piece in pieces)),
            next_offsets=next_offsets,
            consumed=dict(consumed),
            filtered=dict(filtered),
            arrived=arrived,
        )

    def _event_times(self, messages: Sequence[Message], decoded: DecodedBatch, now_ms: int) -> list[int]:
        events, invalid = decoded.events, decoded.invalid
        if self._time_field is not None:
            if not invalid and not decoded.ignored:
                return self._decoder.values(events, self._time_field)
            event_times = iter(self._decoder.values([event for event in events if event is not None], self._time_field))
            return [next(event_times) if event is not None else 0 for event in events]
        times = [m.timestamp()[1] for m in messages]
        for i, time in enumerate(times):
            if events[i] is None:
                continue
            try:
                self._decoder.check_record_time(time, now_ms)
            except InvalidEvent as verdict:
                events[i], invalid[i] = None, verdict
        return times

    def _transform_batch(self, batch: Batch) -> Batch:
        if self._lookups is not None:
            batch = replace(batch, frame=self._lookups.join(batch.frame))
        frame, culprits = self._apply(batch.frame)
        if culprits:
            batch = batch.refuse([i for i, _ in culprits], Reason.EXPRESSION_FAILED, culprits[0][1])
        for name in self._derived_keys:
            long = frame.filter(pl.col(name).str.len_bytes() > MAX_KEY_BYTES)[INDEX].to_list()
            if long:
                batch = batch.refuse(long, Reason.KEY_TOO_LONG, f"{name} takes at most {MAX_KEY_BYTES} bytes")
                frame = frame.filter(~pl.col(INDEX).is_in(long))
        if self._filters:
            before, after = Counter(batch.frame[PARTITION].to_list()), Counter(frame[PARTITION].to_list())
            batch = replace(batch, filtered=dict(Counter(batch.filtered) + (before - after)))
        return replace(batch, frame=frame)

    def _apply(self, frame: pl.DataFrame) -> tuple[pl.DataFrame, list[tuple[int, str]]]:
        try:
            return self._transform.apply(frame), []
        except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
            if frame.height <= 1:
                return self._transform.apply(frame.clear()), [(i, str(error)) for i in frame[INDEX].to_list()]
            half = frame.height // 2
            left, left_bad = self._apply(frame[:half])
            right, right_bad = self._apply(frame[half:])
            return pl.concat([left, right]), left_bad + right_bad
