"""Decode exploded arrays: each element becomes an event, which also has the record's other fields.

Elements are validated separately, so an invalid element does not affect the other elements.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import chain
from types import GenericAlias
from typing import Any

import msgspec

from tidemill_contract.events.decoder import DecodedBatch, EventDecoder, InvalidEvent, Reason
from tidemill_contract.events.event_errors import wrong_path
from tidemill_contract.events.fields import with_fields
from tidemill_contract.events.json_fields import JSON, text_at
from tidemill_contract.events.members import items
from tidemill_contract.events.shapes import Leaf
from tidemill_contract.events.types import type_of
from tidemill_contract.resource.paths import Steps, show_path
from tidemill_contract.resource.source import FieldSpec
from tidemill_contract.resource.spec import PipelineSpec

MAX_ELEMENTS = 10_000
"""The maximum number of elements in a record. A record with more elements becomes a dead letter."""
MAX_COPIED_BYTES = 32 * 1024 * 1024
"""Each array element is stored with a copy of the record's other fields. This constant limits the total size of these
copies per record, in bytes."""
ELEMENTS_ATTRIBUTE = "_elements"
"""The attribute of a decoded record that holds the exploded array. A field cannot have this name."""


class ExplodedArray:
    """The array that a pipeline explodes into events."""

    def __init__(self, spec: PipelineSpec, steps: Steps) -> None:
        element_fields = [field for field in spec.source.fields if field.array is not None]
        self._steps, self._field = steps, element_fields[0].name
        self._required_field = next((field.name for field in element_fields if field.required), None)
        self._stores_events = spec.events.store
        self.record = with_fields(spec, [field for field in spec.source.fields if field.array is None])
        self.leaf = Leaf(ELEMENTS_ATTRIBUTE, steps, list[msgspec.Raw], required=False, element_field=self._field)

    @classmethod
    def of(cls, spec: PipelineSpec) -> ExplodedArray | None:
        """Return the exploded array of a pipeline, or None if the pipeline explodes no array."""
        return None if spec.source.array is None else cls(spec, spec.source.array)

    def validate(
        self,
        decoded: DecodedBatch,
        arrays: Sequence[list[Any] | None],
        raws: Sequence[bytes],
        document: Callable[[bytes], bytes],
    ) -> DecodedBatch:
        """Check the arrays in decoded records, and return the records. An invalid array makes the whole record invalid.

        Args:
            decoded: the records.
            arrays: the arrays of the valid records, in order.
            raws: the bytes of all records.
            document: a function that returns the event in a record as JSON.
        """
        if self.are_all_valid(arrays, max(map(len, raws), default=0)):
            return decoded
        valid_indexes = [index for index, event in enumerate(decoded.events) if event is not None]
        indexed_arrays = zip(valid_indexes, arrays, strict=True)
        results = ((index, self._array_error(array, raws[index], document)) for index, array in indexed_arrays)
        errors = {index: error for index, error in results if error is not None}
        events = [None if index in errors else event for index, event in enumerate(decoded.events)]
        return replace(decoded, events=events, invalid=decoded.invalid | errors)

    def are_all_valid(self, arrays: Sequence[list[Any] | None], largest: int) -> bool:
        """Return True if all arrays are valid, or False if each array must be checked separately."""
        longest = max((len(array or ()) for array in arrays), default=0)
        if self._required_field is not None and any(array is None for array in arrays):
            return False
        return longest <= MAX_ELEMENTS and (not self._stores_events or longest * largest <= MAX_COPIED_BYTES)

    def _array_error(
        self, array: list[msgspec.Raw] | None, raw: bytes, document: Callable[[bytes], bytes]
    ) -> InvalidEvent | None:
        path = show_path(self._steps)
        if array is None:
            if self._required_field is None:
                return None
            name = self._required_field
            detail = f"{path} is missing or null, but its elements need the field {name}; send the array"
            return InvalidEvent(Reason.MISSING_FIELD, name, detail)
        if len(array) > MAX_ELEMENTS:
            detail = f"{path} has {len(array)} elements; at most {MAX_ELEMENTS} are allowed: send several records"
            return InvalidEvent(Reason.TOO_LARGE, self._field, detail)
        other_bytes = 0
        if self._stores_events and len(array) * len(raw) > MAX_COPIED_BYTES:
            event = document(raw)
            other_bytes = len(event) - len(text_at(event, self._steps) or b"")
        if len(array) * other_bytes <= MAX_COPIED_BYTES:
            return None
        detail = f"{path} has {len(array)} elements, and each element would be stored with the {other_bytes} bytes of"
        detail += (
            f" the record's other fields; these copies may have at most {MAX_COPIED_BYTES} bytes in total: send several"
            " records"
        )
        return InvalidEvent(Reason.TOO_LARGE, self._field, detail)


@dataclass(frozen=True)
class Elements:
    """The elements of several records, in the order of the records.

    Attributes:
        events: the events, with None for an invalid element.
        counts: the number of elements in each record.
        raws: the JSON texts of the elements, or an empty list from `ElementDecoder.validate_together`.
        invalid: the errors of invalid elements, by index.
    """

    events: list[Any]
    counts: list[int]
    raws: list[bytes]
    invalid: dict[int, InvalidEvent]
    micros: list[int] | None


class ElementDecoder:
    """Decodes and validates the elements of a pipeline's exploded array.

    `kind` is the type with which msgspec decodes the array as a part of the record. `kind` is None if the elements must
    be decoded separately.
    """

    def __init__(self, spec: PipelineSpec, *, exact: bool = False) -> None:
        element_fields = [field for field in spec.source.fields if field.array is not None]
        self._steps: Steps = spec.source.array or ()
        self._field = element_fields[0].name
        # The decoder reads only objects. If a field reads a whole element (such as a number), each element is wrapped
        # in an object.
        whole_fields = sorted(
            (field for field in element_fields if not _path_in_element(field)), key=lambda field: field.type == JSON
        )
        self._wrapper = whole_fields[0].name if whole_fields else None
        decoder_fields = [field.model_copy(update={"path": self._decoder_path(field)}) for field in element_fields]
        self._decoder = EventDecoder(with_fields(spec, decoder_fields), exact=exact, is_part=True)
        self.names = frozenset(field.name for field in element_fields)
        self.has_time = spec.source.event_time.field in self.names
        self.kind: Any = None
        if not any(field.type == JSON for field in element_fields):
            kind = type_of(element_fields[0])
            kind = kind if any(field.required for field in whole_fields) else kind | None
            self.kind = GenericAlias(list, (self._decoder.type if self._wrapper is None else kind,))

    def _decoder_path(self, field: FieldSpec) -> Steps | None:
        path = _path_in_element(field)
        if self._wrapper is None:
            return path
        return (self._wrapper, *path) if path or field.name != self._wrapper else None

    def decode(self, arrays: Sequence[Sequence[msgspec.Raw] | None], now_ms: int) -> Elements:
        """Decode the elements of arrays. `now_ms` is the wall time in epoch milliseconds."""
        raws = list(map(bytes, chain.from_iterable(array or () for array in arrays)))
        counts = [len(array or ()) for array in arrays]
        decoded = self._decoder.decode_all(self._documents(raws), now_ms)
        if not decoded.invalid:
            return Elements(decoded.events, counts, raws, {}, decoded.micros)
        positions = list(chain.from_iterable(map(range, counts)))
        invalid = {
            index: self._with_position(error, positions[index], raws[index]) for index, error in decoded.invalid.items()
        }
        return Elements(decoded.events, counts, raws, invalid, decoded.micros)

    def validate_together(
        self, arrays: Sequence[list[Any] | None], raws: Sequence[bytes], now_ms: int, largest: int
    ) -> Elements | None:
        """Validate elements that were decoded with the records.

        The result is None if each element must be validated separately.

        Args:
            arrays: the decoded elements of each record.
            raws: the bytes of the records.
            now_ms: wall time, epoch milliseconds.
            largest: the size of the largest record in bytes.
        """
        events = list(chain.from_iterable(array or () for array in arrays))
        if self._wrapper is not None:
            event_class, name = self._decoder.type, self._wrapper
            events = [event_class(**{name: value}) for value in events]
        decoded = self._decoder.validate_together(events, raws, now_ms, largest, whole=False)
        if decoded is None:
            return None
        return Elements(events, [len(array or ()) for array in arrays], [], {}, decoded.micros)

    def _documents(self, raws: list[bytes]) -> list[bytes]:
        if self._wrapper is not None:
            prefix = b'{"%b":' % self._wrapper.encode()
            return [b"%b%b}" % (prefix, raw) for raw in raws]
        return [raw if raw != b"null" else b"{}" for raw in raws] if b"null" in raws else raws

    def _with_position(self, error: InvalidEvent, position: int, raw: bytes) -> InvalidEvent:
        if error.reason is Reason.NOT_AN_OBJECT:
            return wrong_path(self._field, (*self._steps, position), raw, array=False)
        detail = f"element {position} of {show_path(self._steps)}: {error.detail}"
        return InvalidEvent(error.reason, error.field, detail)

    def values(self, events: Sequence[Any], name: str) -> list[Any]:
        """Return a field's value in each event."""
        return self._decoder.values(events, name)

    def as_json(self, events: Sequence[Any], raws: Sequence[bytes]) -> list[str]:
        """Return each event as a JSON object, in which each field is a member.

        Fields of type `json` are copied from the elements' JSON texts `raws`.
        """
        return self._decoder.as_json(events, self._documents(list(raws)))


@dataclass(frozen=True)
class Origins:
    """Maps the events of exploded arrays to their records.

    `starts` contains the index of each record's first event, followed by the total number of events.
    """

    starts: Sequence[int]
    steps: Steps
    document: Callable[[bytes], bytes] = field(compare=False)
    ignored: frozenset[int] = frozenset()

    def locate(self, index: int) -> tuple[int, int]:
        """Return the index of an event's record, and the event's index in the record's array."""
        record = bisect_right(self.starts, index) - 1
        return record, index - self.starts[record]

    def text(self, raw: bytes, position: int) -> bytes:
        """Return the JSON text of the element at index `position` in a valid record's array."""
        return _texts(self.document(raw), self.steps)[position]


@lru_cache(maxsize=32)  # cached, because the elements of a record are requested one after the other
def _texts(raw: bytes, steps: Steps) -> list[bytes]:
    return items(text_at(raw, steps) or b"[]")


def _path_in_element(field: FieldSpec) -> Steps:
    return field.steps[len(field.array or ()) + 1 :]
