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

from tidemill_contract.events.decoder import DecodedBatch, EventDecoder
from tidemill_contract.events.event_errors import show_bytes, wrong_path
from tidemill_contract.events.formats.changes import WRITES
from tidemill_contract.events.formats.framing import FRAME_BYTES
from tidemill_contract.events.formats.typed import TypedDecoder
from tidemill_contract.events.invalid_events import InvalidEvent, Reason
from tidemill_contract.resource.paths import Steps
from tidemill_contract.resource.source import FieldSpec
from tidemill_processor.formats.avro_code import UnsupportedError, WantedMember, generate_reader
from tidemill_processor.formats.avro_columns import columns_reader
from tidemill_processor.formats.avro_types import AvroSchema, is_readable, with_epoch_format, with_json_format
from tidemill_processor.formats.registry import Schema
from tidemill_processor.formats.schema_reader import DecodingPlan, SchemaReader, with_changed

MIN_NUMPY_RECORDS = 256
"""With at least this many records, numpy reads all records together."""
_STREAM = re.compile(r" from <[^>]*>")


def _encode_other(value: Any) -> Any:
    if isinstance(value, float):
        return value
    if isinstance(value, dt.timedelta):
        return value.total_seconds()
    return str(value)


_encode = msgspec.json.Encoder(decimal_format="number", enc_hook=_encode_other).encode


@cache
def _read_extreme_times_as_numbers() -> None:
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

    def plan(self, schema: Schema, schema_id: int) -> DecodingPlan:
        """Return the decoding plan for an Avro schema.

        Raises:
            ValueError: the schema is not an Avro record.
        """
        if schema.kind != "AVRO":
            raise ValueError(f"the type is {schema.kind}, not AVRO")
        _read_extreme_times_as_numbers()
        parsed = AvroSchema.parse(schema)
        if parsed.record(parsed.parsed) is None:
            raise ValueError("the Avro type is not a record")
        return _AvroPlan(self, parsed, schema_id)


class _AvroPlan(DecodingPlan):
    def __init__(self, reader: SchemaReader, schema: AvroSchema, schema_id: int) -> None:
        self._reader, self._schema, self._schema_id, self._fields = reader, schema, schema_id, reader.fields
        nodes = {name: schema.member(schema.parsed, path) for name, path in reader.paths.items()}
        self._refused = self._undeclared_member() if reader.strict else None
        flat = [field for field in reader.flat_spec.source.fields if field.name in nodes]
        json_fields = {field.name: with_json_format(field, nodes[field.name]) for field in flat}
        self._json_decoder = EventDecoder(with_changed(reader.flat_spec, json_fields), exact=reader.exact)
        self._typed: TypedDecoder | None = None
        if self._refused is None:
            self._generate(nodes, exact=reader.exact)

    def _undeclared_member(self) -> InvalidEvent | None:
        written: Any = self._schema.parsed
        if self._reader.reads_changes:
            record = self._schema.record(written)
            assert record is not None  # noqa: S101 - asked before
            written = next((each["type"] for each in record["fields"] if each["name"] == "after"), "null")
        return self._reader.refusal(
            self._schema.find_unread(written, list(self._reader.paths.values()), self._reader.row_path)
        )

    def _generate(self, nodes: Mapping[str, Any], *, exact: bool) -> None:
        flat, needed = self._reader.flat_spec, self._reader.needed
        fields: dict[str, FieldSpec] = {}
        for field in flat.source.fields:
            node = nodes.get(field.name)
            epoch_field = with_epoch_format(field, node)
            if epoch_field is None or (node is not None and not is_readable(field, node)):
                return
            path = self._reader.paths.get(field.name)
            if node is None and path is not None and not self._schema.is_absent(path):
                return
            fields[field.name] = epoch_field
        typed = TypedDecoder(with_changed(flat, fields), exact=exact, read_names=needed)
        specs = {field.name: field for field in flat.source.fields}
        wanted = [
            WantedMember(self._reader.paths[name], specs[name].type, specs[name].scale or 0)
            if name in needed and nodes.get(name) is not None
            else None
            for name in typed.columns
        ]
        op = ("op",) if self._reader.reads_changes else None
        try:
            self._read = self._read_many = generate_reader(
                self._schema, wanted, typed.event_class, within=self._reader.row_path, op=op
            )
        except (UnsupportedError, SyntaxError):
            return
        self._typed = typed
        with suppress(UnsupportedError):
            self._read_many = columns_reader(
                self._schema, wanted, typed.event_class, within=self._reader.row_path, op=op
            )

    def decode_many(self, raws: Sequence[bytes], now_ms: int) -> DecodedBatch | None:
        if self._typed is None:
            return None
        try:
            events, ops = (self._read if len(raws) < MIN_NUMPY_RECORDS else self._read_many)(raws)
        except Exception:  # Invalid bytes can cause any error. After an error, the records are validated one by one.
            return None
        if self._reader.reads_changes and not set(ops) <= WRITES:
            return None
        return self._typed.validate(events, now_ms)

    def decode_one(self, raw: bytes, now_ms: int) -> DecodedBatch | None:
        document = self.document(raw)
        return None if document is None else self._json_decoder.decode_all([document], now_ms)

    def document(self, raw: bytes) -> bytes | None:
        if self._refused is not None:
            raise self._refused
        value = self._value(raw)
        row = self._reader.row(value) if self._reader.reads_changes else value
        if row is None:
            return None
        event = {}
        for field in self._fields:
            member = _value_at(value if field.origin == "envelope" else row, field.member_path, field)
            if member is not None:
                event[field.name] = msgspec.Raw(_json(member, field.name))
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
        remaining = len(raw) - stream.tell()
        if remaining:
            raise self._unreadable(f"{remaining} bytes are left after the value")
        return value

    def _unreadable(self, why: str) -> InvalidEvent:
        name = show_bytes(str(self._schema.parsed.get("name", "")).encode())
        remedy = "start the record with the id of the writer's schema"
        return InvalidEvent(
            Reason.UNREADABLE,
            None,
            f"the bytes do not match the schema {self._schema_id} ({name}): {why[:120]}; {remedy}",
        )


def _value_at(value: Any, steps: Steps, field: FieldSpec) -> Any:
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
            raise wrong_path(field.name, steps[:depth], _json(value, field.name), array=isinstance(step, int))
    return value


def _json(value: Any, name: str) -> bytes:
    if isinstance(value, float) and not math.isfinite(value):
        detail = f"{name}: {value} is not a finite number; send null, or a number"
        raise InvalidEvent(Reason.OUT_OF_RANGE, name, detail)
    return _encode(value)
