"""Avro records that fastavro writes with the header of a schema registry, and classes of rows for them."""

from __future__ import annotations

import io
import json
from typing import Any

import fastavro
import msgspec

from tidemill_processor.formats.avro_types import AvroSchema
from tidemill_processor.formats.registry import Schema

FRAME = b"\0\0\0\0\7"
"""The header of a record whose schema has the id 7."""


def schema_of(document: Any) -> AvroSchema:
    """Parse an Avro schema that is given as a document."""
    return AvroSchema.parse(Schema(json.dumps(document)))


def row_of(number: int) -> type:
    """Return a class of rows with the columns `c0`, `c1`, …."""
    return msgspec.defstruct("Row", [(f"c{place}", Any, None) for place in range(number)])


def written(schema: AvroSchema, value: Any) -> bytes:
    """Encode a value as a record with the header."""
    stream = io.BytesIO()
    fastavro.schemaless_writer(stream, schema.parsed, value)
    return FRAME + stream.getvalue()
