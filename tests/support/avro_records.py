"""Avro records in the framing of a registry, written by fastavro, and the rows that readers make of them."""

from __future__ import annotations

import io
import json
from typing import Any

import fastavro
import msgspec

from tidemill_processor.formats.avro_types import AvroSchema
from tidemill_processor.formats.registry import Schema

FRAME = b"\0\0\0\0\7"
"""The bytes before a record of the schema with the id 7."""


def schema_of(document: Any) -> AvroSchema:
    """Return the schema of an Avro document."""
    return AvroSchema.of(Schema(json.dumps(document)))


def row_of(number: int) -> type:
    """Return a class of rows with a number of columns."""
    return msgspec.defstruct("Row", [(f"c{place}", Any, None) for place in range(number)])


def written(schema: AvroSchema, value: Any) -> bytes:
    """Return a value as a framed record."""
    stream = io.BytesIO()
    fastavro.schemaless_writer(stream, schema.parsed, value)
    return FRAME + stream.getvalue()
