"""Decodes the rows of a lookup with the types, formats and messages of events."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import polars as pl

from tidemill_contract.events.decoder import EventDecoder
from tidemill_contract.events.fields import with_fields
from tidemill_contract.events.invalid_events import InvalidEvent
from tidemill_contract.expressions.values import POLARS_TYPES
from tidemill_contract.resource.kinds.formats import FormatSpec
from tidemill_contract.resource.lookups.model import LookupSpec
from tidemill_contract.resource.source import FieldSpec
from tidemill_contract.resource.spec import PipelineSpec
from tidemill_processor.formats.columns import as_column
from tidemill_processor.lookups.table import KEY, LookupFault, Table, build_table, check_size

_KEY_FIELD = "_key"
"""The name of the field that contains the key of a row."""
PIECE_ROWS, PIECE_BYTES = 5_000, 8 * 1024 * 1024
"""Rows are decoded together, up to this number of rows and up to this size in bytes."""


def row_spec(spec: PipelineSpec, lookup: LookupSpec, *, keyed: bool = True, zone: str | None = None) -> PipelineSpec:
    """Return a pipeline spec for decoding the rows of a lookup as events.

    Args:
        spec: the spec of the pipeline.
        lookup: the lookup.
        keyed: whether the key is part of a row.
        zone: the time zone of timestamp fields for which the lookup sets neither zone nor format.
    """
    fields = [field.row_field for field in lookup.fields]
    if zone is not None:
        fields = [
            field.model_copy(update={"zone": zone})
            if field.type == "timestamp" and field.format is None and field.zone is None
            else field
            for field in fields
        ]
    if keyed:
        fields.insert(0, key_field(spec, lookup))
    return with_fields(spec, fields, strict=False, format=FormatSpec(), key=None)


def key_field(spec: PipelineSpec, lookup: LookupSpec) -> FieldSpec:
    """Return the field for the key of a lookup's rows. The key has the type of the event field `lookup.on`."""
    path = None if lookup.source.key is None else (lookup.source.key,)
    kind: Any = spec.field_kinds[lookup.on]
    return FieldSpec.model_construct(name=_KEY_FIELD, type=kind, path=path)


class RowDecoder:
    """Decodes rows in JSON."""

    def __init__(self, spec: PipelineSpec, lookup: LookupSpec, rows: PipelineSpec) -> None:
        """Create the decoder. `rows` is the spec from `row_spec`."""
        self._decoder = EventDecoder(rows)
        self._keyed = any(field.name == _KEY_FIELD for field in rows.source.fields)
        self._key = lookup.source.key or "the record key"
        self._fields = {field.name: POLARS_TYPES[field.kind] for field in lookup.fields}
        self.schema = pl.Schema({KEY: POLARS_TYPES[spec.field_kinds[lookup.on]], **self._fields})

    def decode(self, raws: Sequence[bytes]) -> tuple[pl.DataFrame, dict[int, str]]:
        """Return the valid rows, and a message for each invalid row, by index."""
        decoded = self._decoder.decode_all(raws, time.time_ns() // 1_000_000)
        valid = [event for event in decoded.events if event is not None]
        return self.frame(valid), {index: self.error_message(verdict) for index, verdict in decoded.invalid.items()}

    def frame(self, events: Sequence[Any]) -> pl.DataFrame:
        """Return decoded rows as a frame."""
        columns = [self._decoder.values(events, _KEY_FIELD)] if self._keyed else []
        series = [as_column(KEY, values, self.schema[KEY]) for values in columns]
        series += [as_column(name, self._decoder.values(events, name), kind) for name, kind in self._fields.items()]
        return pl.DataFrame(series)

    def error_message(self, verdict: InvalidEvent) -> str:
        """Return the message for an invalid row. The message uses the source's name for the key field."""
        text = verdict.detail or str(verdict.reason)
        return text.replace(_KEY_FIELD, self._key) if verdict.field == _KEY_FIELD else text

    def table(self, raws: Iterable[bytes], row_word: str = "row", numbers: Sequence[int] | None = None) -> Table:
        """Return the table of all rows.

        Raises:
            LookupFault: a row is not valid, a key has several rows, or there are too many rows.
        """
        frames = [pl.DataFrame(schema=self.schema)]
        count = size = 0
        for piece in _pieces(raws):
            frame, faults = self.decode(piece)
            if faults:
                index, text = next(iter(sorted(faults.items())))
                number = count + index + 1 if numbers is None else numbers[count + index]
                raise LookupFault(f"{row_word} {number}: {text}")
            count, size = count + len(piece), size + int(frame.estimated_size())
            check_size(count, size)
            frames.append(frame)
        return build_table(frames)


def _pieces(raws: Iterable[bytes]) -> Iterator[list[bytes]]:
    piece: list[bytes] = []
    size = 0
    for raw in raws:
        piece.append(raw)
        size += len(raw)
        if len(piece) >= PIECE_ROWS or size >= PIECE_BYTES:
            yield piece
            piece, size = [], 0
    if piece:
        yield piece
