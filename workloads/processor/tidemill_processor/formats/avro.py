"""Reads Avro records with the schema of their writer."""

from __future__ import annotations

import datetime as dt
import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cache, partial
from typing import Any

import fastavro
import msgspec
from fastavro.read import LOGICAL_READERS

from tidemill_contract.events.decoder import Decoded, EventDecoder
from tidemill_contract.events.details import misplaced, shown
from tidemill_contract.events.formats.changes import WRITES
from tidemill_contract.events.formats.framing import FRAME_BYTES
from tidemill_contract.events.formats.typed import TypedDecoder
from tidemill_contract.events.verdicts import InvalidEvent, Reason
from tidemill_contract.resource.paths import Steps
from tidemill_contract.resource.source import FieldSpec
from tidemill_processor.formats.avro_code import UnsupportedError, Wanted, generate
from tidemill_processor.formats.avro_columns import columns_reader
from tidemill_processor.formats.avro_types import AvroSchema, counted_as, fits, written_as
from tidemill_processor.formats.registry import Schema
from tidemill_processor.formats.schema_reader import Plan, SchemaReader, with_changed

MANY = 256
"""With at least this many records, numpy reads all records together."""
_STREAM = re.compile(r" from <[^>]*>")


def _other(value: Any) -> Any:
    if isinstance(value, float):
        return value
    if isinstance(value, dt.timedelta):
        return value.total_seconds()
    return str(value)


_encode = msgspec.json.Encoder(decimal_format="number", enc_hook=_other).encode


@cache
def _keep_values_without_a_type() -> None:
    """Make fastavro return a number, not an error, for a time outside the years 1 to 9999."""
    for name, read in list(LOGICAL_READERS.items()):
        LOGICAL_READERS[name] = partial(_read_leniently, read, 1000 if name.endswith("timestamp-micros") else 1)


def _read_leniently(read: Callable[..., Any], per_millisecond: int, data: Any, *schemas: Any) -> Any:
    try:
        return read(data, *schemas)
    except Exception:
        # Return the integer, because `datetime` cannot represent years outside 1 to 9999.
        return data // per_millisecond if isinstance(data, int) else data


class AvroReader(SchemaReader):
    """Reads Avro records that start with a schema id, as written by a registry's serializers."""

    def plan(self, schema: Schema, number: int) -> Plan:
        """Return the decoding plan for an Avro schema.

        Raises:
            ValueError: the schema is not an Avro record.
        """
        if schema.kind != "AVRO":
            raise ValueError(f"the type is {schema.kind}, not AVRO")
        _keep_values_without_a_type()
        parsed = AvroSchema.of(schema)
        if parsed.record(parsed.parsed) is None:
            raise ValueError("the Avro type is not a record")
        return _AvroPlan(self, parsed, number)


class _AvroPlan(Plan):
    def __init__(self, reader: SchemaReader, schema: AvroSchema, number: int) -> None:
        self._reader, self._schema, self._number, self._fields = reader, schema, number, reader.fields
        nodes = {name: schema.member(schema.parsed, path) for name, path in reader.paths.items()}
        self._refused = self._undeclared() if reader.strict else None
        flat = [field for field in reader.flat.source.fields if field.name in nodes]
        documents = {field.name: written_as(field, nodes[field.name]) for field in flat}
        self._documents = EventDecoder(with_changed(reader.flat, documents), exact=reader.exact)
        self._typed: TypedDecoder | None = None
        if self._refused is None:
            self._generate(nodes, exact=reader.exact)

    def _undeclared(self) -> InvalidEvent | None:
        written: Any = self._schema.parsed
        if self._reader.changes:
            record = self._schema.record(written)
            assert record is not None  # noqa: S101 - asked before
            written = next((each["type"] for each in record["fields"] if each["name"] == "after"), "null")
        return self._reader.refusal(
            self._schema.unread(written, list(self._reader.paths.values()), self._reader.at_row)
        )

    def _generate(self, nodes: Mapping[str, Any], *, exact: bool) -> None:
        flat, needed = self._reader.flat, self._reader.needed
        fields: dict[str, FieldSpec] = {}
        for field in flat.source.fields:
            node = nodes.get(field.name)
            counted = counted_as(field, node)
            if counted is None or (node is not None and not fits(field, node)):
                return
            path = self._reader.paths.get(field.name)
            if node is None and path is not None and not self._schema.absent(path):
                return
            fields[field.name] = counted
        typed = TypedDecoder(with_changed(flat, fields), exact=exact, read=needed)
        specs = {field.name: field for field in flat.source.fields}
        wanted = [
            Wanted(self._reader.paths[name], specs[name].type, specs[name].scale or 0)
            if name in needed and nodes.get(name) is not None
            else None
            for name in typed.columns
        ]
        op = ("op",) if self._reader.changes else None
        try:
            self._read = self._read_many = generate(self._schema, wanted, typed.row, within=self._reader.at_row, op=op)
        except (UnsupportedError, SyntaxError):
            return
        self._typed = typed
        with suppress(UnsupportedError):
            self._read_many = columns_reader(self._schema, wanted, typed.row, within=self._reader.at_row, op=op)

    def together(self, raws: Sequence[bytes], now_ms: int) -> Decoded | None:
        if self._typed is None:
            return None
        try:
            events, ops = (self._read if len(raws) < MANY else self._read_many)(raws)
        except Exception:  # Invalid bytes can cause any error. After an error, the records are validated one by one.
            return None
        if self._reader.changes and not set(ops) <= WRITES:
            return None
        return self._typed.judged(events, now_ms)

    def single(self, raw: bytes, now_ms: int) -> Decoded | None:
        document = self.document(raw)
        return None if document is None else self._documents.decode_all([document], now_ms)

    def document(self, raw: bytes) -> bytes | None:
        if self._refused is not None:
            raise self._refused
        value = self._value(raw)
        row = self._reader.row(value) if self._reader.changes else value
        if row is None:
            return None
        event = {}
        for field in self._fields:
            at = _at(value if field.origin == "envelope" else row, field.member, field)
            if at is not None:
                event[field.name] = msgspec.Raw(_json(at, field.name))
        return msgspec.json.encode(event)

    def _value(self, raw: bytes) -> Any:
        stream = io.BytesIO(raw)
        stream.seek(FRAME_BYTES)
        try:
            value = fastavro.schemaless_reader(stream, self._schema.parsed, None)
        except Exception as error:
            # Some error messages contain the memory address of `stream`. The address does not help the user.
            text = _STREAM.sub("", str(error))
            raise self._unreadable(f"{type(error).__name__}: {text}" if text else type(error).__name__) from None
        left = len(raw) - stream.tell()
        if left:
            raise self._unreadable(f"{left} bytes are left after the value")
        return value

    def _unreadable(self, why: str) -> InvalidEvent:
        name = shown(str(self._schema.parsed.get("name", "")).encode())
        remedy = "start the record with the id of the writer's schema"
        return InvalidEvent(
            Reason.UNREADABLE, None, f"the bytes do not match the schema {self._number} ({name}): {why[:120]}; {remedy}"
        )


def _at(value: Any, steps: Steps, field: FieldSpec) -> Any:
    for depth, step in enumerate(steps):
        if value is None:
            return None
        if isinstance(step, int) and isinstance(value, list | tuple):
            value = value[step] if step < len(value) else None
        elif isinstance(step, str) and isinstance(value, dict):
            value = value.get(step)
        elif field.type == "json":
            return None
        else:
            raise misplaced(field.name, steps[:depth], _json(value, field.name), array=isinstance(step, int))
    return value


def _json(value: Any, name: str) -> bytes:
    if isinstance(value, float) and not math.isfinite(value):
        detail = f"{name}: {value} is not a finite number; send null, or a number"
        raise InvalidEvent(Reason.OUT_OF_RANGE, name, detail)
    return _encode(value)
