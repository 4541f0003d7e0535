"""The fields of a pipeline's events: their paths, their types, and the structs for reading them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from tidemill_contract.duration import parse_ms
from tidemill_contract.events.decimals import Decimals
from tidemill_contract.events.event_times import EventTimes
from tidemill_contract.events.json_fields import JSON, JsonFields
from tidemill_contract.events.shapes import Leaf, Shape, ignored_leaves
from tidemill_contract.events.timestamps import TimeFormat
from tidemill_contract.events.types import default_of, kind_of, type_of
from tidemill_contract.functions.base import STRINGS
from tidemill_contract.resource.source import FieldSpec
from tidemill_contract.resource.spec import PipelineSpec

MAX_EVENT_BYTES = 1024 * 1024
MAX_KEY_BYTES = 1024
# A record contains the event, a copy of one field (the key), and at most 128 KiB of headers.
MAX_RECORD_BYTES = 2 * MAX_EVENT_BYTES + 128 * 1024


def with_fields(spec: PipelineSpec, fields: Sequence[FieldSpec], **source: Any) -> PipelineSpec:
    """Return a copy of the spec with only the given fields. `source` contains further changes to `spec.source`."""
    time = spec.source.event_time
    if time.field not in {field.name for field in fields}:
        time = time.model_copy(update={"field": None})
    update = {"fields": list(fields), "event_time": time, **source}
    return spec.model_copy(update={"source": spec.source.model_copy(update=update)})


class EventFields:
    """The fields of one pipeline's events.

    Attributes:
        timestamps: the fields of type timestamp, with fields without a format first.
        numeric_timestamps: the fields of type timestamp whose values are numbers in a unit, such as seconds.
        group_strings: the fields of type string that an aggregation or an anomaly rule groups by.
        expected_names: the names of the fields and of the exploded array. An event with none of these members may be an
            envelope.
        may_be_envelope: whether to look for an unexpected envelope if an event is invalid.
        accepts_envelopes: whether no field is required, so that an unexpected envelope would be a valid event.
    """

    def __init__(self, spec: PipelineSpec, *, exact: bool, array: Leaf | None, is_part: bool) -> None:
        fields = [field for field in spec.source.fields if field.origin == "value" and field.type != JSON]
        json_paths = {field.name: field.steps for field in spec.source.fields if field.type == JSON}
        self.json_fields = JsonFields(json_paths) if json_paths else None
        self.names = tuple(field.name for field in fields)
        event_time = spec.source.event_time.field
        leaves = [Leaf(f.name, f.steps, type_of(f), f.required or f.name == event_time, default_of(f)) for f in fields]
        # If a pipeline has a Python stage, do not report envelopes, because the stage may unwrap envelopes.
        unwraps = spec.transform.python is not None or spec.source.record_format.envelope != "none"
        self.may_be_envelope = not is_part and not unwraps
        self.accepts_envelopes = self.may_be_envelope and not any(leaf.required for leaf in leaves)
        self.expected_names = self.names if array is None else (*self.names, array.name)
        leaves += [array] if array is not None else []
        outside_fields = [field for field in spec.source.fields if field.origin != "value"]
        leaves += [Leaf(field.name, field.steps, Any, required=False, is_outside=True) for field in outside_fields]
        leaves += ignored_leaves(json_paths, leaves) if spec.source.strict else []
        self.shape = Shape(leaves, strict=spec.source.strict)
        self.decode = msgspec.json.Decoder(self.shape.type).decode
        # If several fields are read from the same member, only the first of these fields is validated.
        duplicate_of = self.shape.duplicate_of
        fields = [field for field in fields if field.name not in duplicate_of]
        self.event_time = duplicate_of.get(event_time, event_time) if event_time in self.names else None
        self.exact = exact and self.event_time is not None
        self.kinds = {field.name: kind_of(field) for field in fields}
        self.steps = {field.name: field.steps for field in fields}
        formats = {field.name: TimeFormat.of(field) for field in fields if field.type == "timestamp"}
        self.timestamps = tuple(sorted(formats, key=lambda name: formats[name] is not None))
        self.formats = {name: time_format for name, time_format in formats.items() if time_format is not None}
        self.numeric_timestamps = tuple(name for name, time_format in self.formats.items() if time_format.is_numeric)
        self.decimals = Decimals(spec.source.fields, duplicate_of, is_part=is_part)
        self.strings = tuple(field.name for field in fields if field.type == "string")
        self.string_lists = tuple(field.name for field in fields if field.type == STRINGS)
        groups = {duplicate_of.get(name, name) for name in spec.group_columns}
        self.group_strings = tuple(name for name in self.strings if name in groups)
        self.times = EventTimes(self.event_time, parse_ms(spec.source.event_time.max_future))
