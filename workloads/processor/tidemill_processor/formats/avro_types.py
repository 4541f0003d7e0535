"""Looks up types in Avro schemas, and matches types with fields of the spec."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import fastavro

from tidemill_contract.decimals import DECIMAL
from tidemill_contract.resource.paths import Steps
from tidemill_contract.resource.source import FieldSpec
from tidemill_processor.formats.registry import Schema
from tidemill_processor.formats.timestamp_fields import with_time_format

Node = Mapping[str, Any]
_MILLIS, _MICROS, _NANOS = "timestamp-millis", "timestamp-micros", "timestamp-nanos"
_LOCAL = "local-"
_TIMES = (_MILLIS, _MICROS, _NANOS, f"{_LOCAL}{_MILLIS}", f"{_LOCAL}{_MICROS}", f"{_LOCAL}{_NANOS}", "date")
_EPOCH_UNITS = {_MICROS: "us", _NANOS: "ns"}


@dataclass(frozen=True)
class AvroSchema:
    """A writer's schema, as parsed by fastavro, with all named types."""

    parsed: Any
    named: Mapping[str, Any]

    @classmethod
    def parse(cls, schema: Schema) -> AvroSchema:
        """Parse a schema and the schemas to which it refers.

        Raises:
            ValueError: one of the schemas is not an Avro schema.
        """
        named: dict[str, Any] = {}
        try:
            for text in schema.references:
                fastavro.parse_schema(json.loads(text), named_schemas=named)
            return cls(fastavro.parse_schema(json.loads(schema.text), named_schemas=named), named)
        except Exception as error:
            raise ValueError(f"{type(error).__name__}: {error}") from None

    def node(self, written: Any) -> Node:
        """Return the definition of a type as a dict. A union gets the type `union`."""
        if isinstance(written, str):
            named = self.named.get(written)
            return {"type": written} if named is None else named
        if isinstance(written, list):
            return {"type": "union", "branches": written}
        if isinstance(written["type"], dict | list):
            return self.node(written["type"])
        if written["type"] in self.named:
            return self.node(written["type"])
        return dict(written)

    def record(self, written: Any) -> Node | None:
        """Return the type of a record, which may be in a union with null. Return None for other types."""
        node = self.node(written)
        if node["type"] == "union":
            others = [self.node(branch) for branch in node["branches"]]
            others = [branch for branch in others if branch["type"] != "null"]
            node = others[0] if len(others) == 1 else node
        return node if node["type"] in ("record", "error") else None

    def member(self, written: Any, steps: Steps) -> Node | None:
        """Return the type at a path, or None if the member is missing or has several types."""
        for step in steps:
            record = self.record(written)
            if record is None or not isinstance(step, str):
                return None
            written = next((field["type"] for field in record["fields"] if field["name"] == step), None)
            if written is None:
                return None
        node = self.node(written)
        branches = node["branches"] if node["type"] == "union" else [node]
        kinds = [branch for branch in map(self.node, branches) if branch["type"] != "null"]
        return kinds[0] if len(kinds) == 1 else None

    def is_absent(self, steps: Steps) -> bool:
        """Return whether no record of this schema can have a value at this path."""
        written = self.parsed
        for step in steps:
            record = self.record(written)
            if record is None or not isinstance(step, str):
                return False
            written = next((field["type"] for field in record["fields"] if field["name"] == step), None)
            if written is None:
                return True
        return False

    def find_unread(self, written: Any, paths: Sequence[Steps], parent: Steps = ()) -> Steps | None:
        """Return the path of a member outside of `paths`, or None if `paths` covers all members."""
        record = self.record(written)
        for field in record["fields"] if record is not None else ():
            steps = (*parent, field["name"])
            if steps in paths:
                continue
            if not any(path[: len(steps)] == steps for path in paths):
                return steps
            nested = self.find_unread(field["type"], paths, steps)
            if nested is not None:
                return nested
        return None


def with_json_format(field: FieldSpec, node: Node | None) -> FieldSpec:
    """Return a copy of a timestamp field. Its `format` suits the Avro type, such as `ns` for nanoseconds."""
    kind = "" if node is None else str(node.get("logicalType", ""))
    if field.type != "timestamp" or kind not in _TIMES:
        return field
    if kind.endswith(_NANOS):
        return with_time_format(field, "ns", None)
    if kind.startswith(_LOCAL) or kind == "date":
        return with_time_format(field, "rfc3339", field.zone or "UTC")
    return with_time_format(field, None, None)


def with_epoch_format(field: FieldSpec, node: Node | None) -> FieldSpec | None:
    """Return a copy of a timestamp field. Its `format` is what generated code reads.

    Return None if generated code cannot read the Avro type.
    """
    kind = "" if node is None else str(node.get("logicalType", ""))
    if field.type != "timestamp" or kind not in _TIMES:
        return field
    if (kind == "date" or kind.startswith(_LOCAL)) and field.zone not in (None, "UTC"):
        return None
    return with_time_format(field, _EPOCH_UNITS.get(kind.removeprefix(_LOCAL)), None)


READABLE_TYPES: Mapping[str, tuple[str, ...]] = {
    "string": ("string", "enum"),
    "integer": ("int", "long"),
    "number": ("double", "float", "int", "long"),
    "boolean": ("boolean",),
    "timestamp": ("long", "int", "string"),
}
"""The Avro types that generated code can read, for each field type of the spec."""


def is_readable(field: FieldSpec, node: Node) -> bool:
    """Return whether generated code can read values of this Avro type for a field."""
    logical = node.get("logicalType")
    if field.type == DECIMAL:
        return logical == "decimal" and int(node.get("scale", 0)) <= (field.scale or 0)
    if node["type"] not in READABLE_TYPES.get(field.type, ()):
        return False
    if field.type == "timestamp":
        return logical is None or logical in _TIMES
    return logical not in (*_TIMES, "time-millis", "time-micros") and logical != "decimal"
