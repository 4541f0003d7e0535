"""Check events with typed values, such as Avro events.

Events that may be invalid are converted to JSON and validated one by one.
"""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Collection
from types import GenericAlias, NoneType
from typing import Any

import msgspec

from tidemill_contract.events.decimals import DecimalFormat
from tidemill_contract.events.decoder import DecodedBatch, EventDecoder
from tidemill_contract.events.fields import MAX_KEY_BYTES
from tidemill_contract.events.members import may_be_rounded
from tidemill_contract.events.types import EPOCH, TYPES
from tidemill_contract.resource.spec import PipelineSpec

_TIME_LIST = GenericAlias(list, (TYPES["timestamp"] | None,))
_MILLISECOND = dt.timedelta(milliseconds=1)
_PYTHON_TYPES: dict[str, type] = {"string": str, "integer": int, "number": float, "boolean": bool}


class TypedDecoder(EventDecoder):
    """Validates typed events, in which each field is the top-level member with the same name.

    Attributes:
        event_class: the class of typed events. Create an event with the values of `columns`, in order.
        columns: the names of all fields. Some of these fields, such as headers, are outside the event.
    """

    def __init__(self, spec: PipelineSpec, *, exact: bool, read_names: Collection[str]) -> None:
        super().__init__(spec, exact=exact)
        self.columns: tuple[str, ...] = self._fields.shape.flat.__struct_fields__
        self.event_class = msgspec.defstruct("Row", [(name, Any, None) for name in self.columns], gc=False)
        fields = [field for field in spec.source.fields if field.name in self.names and field.name in read_names]
        self._required_names = {field.name for field in fields if field.required or field.name == self.event_time_field}
        self._expected_types = {
            field.name: _PYTHON_TYPES[field.type] for field in fields if field.type in _PYTHON_TYPES
        }
        formats = {field.name: DecimalFormat.of(field) for field in fields}
        self._limits = {name: each.limit for name, each in formats.items() if each is not None}
        self._time_names = [name for name in self._fields.timestamps if name in read_names]

    def validate(self, events: list[Any], now_ms: int) -> DecodedBatch | None:
        """Validate events and convert their times. If the events must be validated one by one, return None."""
        for name, expected in self._expected_types.items():
            values = self._fields.shape.values(events, name)
            kinds = set(map(type, values))
            if not self._have_types(kinds, name, expected):
                return None
            non_null = values if NoneType not in kinds else [value for value in values if value is not None]
            if expected is str:
                if "\0" in "".join(non_null):
                    return None
                if name in self._fields.group_strings and non_null and max(map(len, non_null)) > MAX_KEY_BYTES // 4:
                    return None
            elif expected is float and not math.isfinite(sum(non_null)):
                return None
        if not all(self._are_in_range(events, name, limit) for name, limit in self._limits.items()):
            return None
        micros = None
        try:
            for name in self._time_names:
                field_micros = self._convert_times(events, name, now_ms)
                if field_micros is None:
                    return None
                if name == self.event_time_field and self._fields.exact:
                    micros = field_micros
        except Exception:  # after any error, the events are read one by one
            return None
        return DecodedBatch(events, {}, micros)

    def _are_in_range(self, events: list[Any], name: str, limit: int) -> bool:
        values = self._fields.shape.values(events, name)
        kinds = set(map(type, values))
        non_null = values if NoneType not in kinds else [value for value in values if value is not None]
        return self._have_types(kinds, name, int) and (
            not non_null or (-limit < min(non_null) and max(non_null) < limit)
        )

    def _have_types(self, kinds: set[type], name: str, *expected: type) -> bool:
        return kinds <= {*expected, NoneType} and not (NoneType in kinds and name in self._required_names)

    def _convert_times(self, events: list[Any], name: str, now_ms: int) -> list[int] | None:
        values = self._fields.shape.values(events, name)
        kinds = set(map(type, values))
        is_event_time = name == self.event_time_field
        needs_micros = is_event_time and self._fields.exact
        micros: list[int] = []
        if not self._have_types(kinds, name, int, str):
            return None
        if name in self._fields.formats:
            exact = self._fields.formats[name].all_micros(values)
            values = [None if each is None else each // 1000 for each in exact]
            micros = [(each or 0) % 1000 for each in exact] if needs_micros else []
            self._fields.shape.put(events, name, values)
        elif str in kinds:
            if kinds - {str, NoneType} or may_be_rounded("\n".join(filter(None, values)).encode()):
                return None
            times: list[Any] = msgspec.convert(values, _TIME_LIST)
            if set(map(type, times)) - {dt.datetime, NoneType}:
                return None
            spans = [None if time is None else time - EPOCH for time in times]
            values = [None if span is None else span // _MILLISECOND for span in spans]
            micros = [0 if s is None else s.microseconds % 1000 for s in spans] if needs_micros else []
            self._fields.shape.put(events, name, values)
        non_null = [value for value in values if value is not None] if NoneType in kinds else values
        if non_null and not self.times.are_all_valid(non_null, is_event_time=is_event_time, now_ms=now_ms):
            return None
        return micros or [0] * len(events)
