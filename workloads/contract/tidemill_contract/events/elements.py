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

from tidemill_contract.events.decoder import Decoded, EventDecoder, InvalidEvent, Reason
from tidemill_contract.events.details import misplaced
from tidemill_contract.events.fields import with_fields
from tidemill_contract.events.kept_json import JSON, text_at
from tidemill_contract.events.members import items
from tidemill_contract.events.shapes import Leaf
from tidemill_contract.events.types import type_of
from tidemill_contract.resource.paths import Steps, show_path
from tidemill_contract.resource.source import FieldSpec
from tidemill_contract.resource.spec import PipelineSpec

MAX_ELEMENTS = 10_000
"""The maximum number of elements in a record. A record with more elements becomes a dead letter."""
MAX_KEPT_BYTES = 32 * 1024 * 1024
"""Each array element is stored with a copy of the record's other fields. This constant limits the total size of these
copies per record, in bytes."""
LIST = "_elements"
"""The attribute of a decoded record that holds the exploded array. A field cannot have this name."""


class ExplodedArray:
    """The array that a pipeline explodes into events."""

    def __init__(self, spec: PipelineSpec, steps: Steps) -> None:
        inside = [field for field in spec.source.fields if field.array is not None]
        self._steps, self._field = steps, inside[0].name
        self._needed = next((field.name for field in inside if field.required), None)
        self._keeps = spec.events.store
        self.record = with_fields(spec, [field for field in spec.source.fields if field.array is None])
        self.leaf = Leaf(LIST, steps, list[msgspec.Raw], required=False, holds=self._field)

    @classmethod
    def of(cls, spec: PipelineSpec) -> ExplodedArray | None:
        """Return the exploded array of a pipeline, or None if the pipeline explodes no array."""
        return None if spec.source.array is None else cls(spec, spec.source.array)

    def judged(
        self,
        decoded: Decoded,
        arrays: Sequence[list[Any] | None],
        raws: Sequence[bytes],
        document: Callable[[bytes], bytes],
    ) -> Decoded:
        """Check the arrays in decoded records, and return the records. An invalid array makes the whole record invalid.

        Args:
            decoded: the records.
            arrays: the arrays of the valid records, in order.
            raws: the bytes of all records.
            document: a function that returns the event in a record as JSON.
        """
        if self.fits(arrays, max(map(len, raws), default=0)):
            return decoded
        at = [index for index, event in enumerate(decoded.events) if event is not None]
        verdicts = (
            (index, self._verdict(array, raws[index], document)) for index, array in zip(at, arrays, strict=True)
        )
        refused = {index: verdict for index, verdict in verdicts if verdict is not None}
        events = [None if index in refused else event for index, event in enumerate(decoded.events)]
        return replace(decoded, events=events, invalid=decoded.invalid | refused)

    def fits(self, arrays: Sequence[list[Any] | None], largest: int) -> bool:
        """Return True if all arrays are valid, or False if each array must be checked separately."""
        longest = max((len(array or ()) for array in arrays), default=0)
        if self._needed is not None and any(array is None for array in arrays):
            return False
        return longest <= MAX_ELEMENTS and (not self._keeps or longest * largest <= MAX_KEPT_BYTES)

    def _verdict(
        self, array: list[msgspec.Raw] | None, raw: bytes, document: Callable[[bytes], bytes]
    ) -> InvalidEvent | None:
        where = show_path(self._steps)
        if array is None:
            if self._needed is None:
                return None
            detail = f"{where} is missing or null, but its elements need the field {self._needed}; send the array"
            return InvalidEvent(Reason.MISSING_FIELD, self._needed, detail)
        if len(array) > MAX_ELEMENTS:
            detail = f"{where} has {len(array)} elements; at most {MAX_ELEMENTS} are allowed: send several records"
            return InvalidEvent(Reason.TOO_LARGE, self._field, detail)
        beside = 0
        if self._keeps and len(array) * len(raw) > MAX_KEPT_BYTES:
            event = document(raw)
            beside = len(event) - len(text_at(event, self._steps) or b"")
        if len(array) * beside <= MAX_KEPT_BYTES:
            return None
        detail = f"{where} has {len(array)} elements, and each element would be stored with the {beside} bytes of"
        detail += (
            f" the record's other fields; these copies may have at most {MAX_KEPT_BYTES} bytes in total: send several"
            " records"
        )
        return InvalidEvent(Reason.TOO_LARGE, self._field, detail)


@dataclass(frozen=True)
class Elements:
    """The elements of several records, in the order of the records.

    Attributes:
        events: the events, with None for an invalid element.
        counts: the number of elements in each record.
        raws: the JSON texts of the elements, or an empty list if `ElementDecoder.plain` returned the elements.
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
        inside = [field for field in spec.source.fields if field.array is not None]
        self._steps: Steps = spec.source.array or ()
        self._field = inside[0].name
        # The decoder reads only objects. If a field reads a whole element (such as a number), each element is wrapped
        # in an object.
        whole = sorted((field for field in inside if not _within(field)), key=lambda field: field.type == JSON)
        self._member = whole[0].name if whole else None
        own = [field.model_copy(update={"path": self._path(field)}) for field in inside]
        self._decoder = EventDecoder(with_fields(spec, own), exact=exact, part=True)
        self.names = frozenset(field.name for field in inside)
        self.has_time = spec.source.event_time.field in self.names
        self.kind: Any = None
        if not any(field.type == JSON for field in inside):
            value = type_of(inside[0]) if any(field.required for field in whole) else type_of(inside[0]) | None
            self.kind = GenericAlias(list, (self._decoder.type if self._member is None else value,))

    def _path(self, field: FieldSpec) -> Steps | None:
        if self._member is None:
            return _within(field)
        return (self._member, *_within(field)) if _within(field) or field.name != self._member else None

    def decode(self, arrays: Sequence[Sequence[msgspec.Raw] | None], now_ms: int) -> Elements:
        """Decode the elements of arrays. `now_ms` is the wall time in epoch milliseconds."""
        raws = list(map(bytes, chain.from_iterable(array or () for array in arrays)))
        counts = [len(array or ()) for array in arrays]
        decoded = self._decoder.decode_all(self._documents(raws), now_ms)
        if not decoded.invalid:
            return Elements(decoded.events, counts, raws, {}, decoded.micros)
        places = list(chain.from_iterable(map(range, counts)))
        invalid = {at: self._located(verdict, places[at], raws[at]) for at, verdict in decoded.invalid.items()}
        return Elements(decoded.events, counts, raws, invalid, decoded.micros)

    def plain(
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
        if self._member is not None:
            make, name = self._decoder.type, self._member
            events = [make(**{name: value}) for value in events]
        decoded = self._decoder.plain(events, raws, now_ms, largest, whole=False)
        if decoded is None:
            return None
        return Elements(events, [len(array or ()) for array in arrays], [], {}, decoded.micros)

    def _documents(self, raws: list[bytes]) -> list[bytes]:
        if self._member is not None:
            begin = b'{"%b":' % self._member.encode()
            return [b"%b%b}" % (begin, raw) for raw in raws]
        return [raw if raw != b"null" else b"{}" for raw in raws] if b"null" in raws else raws

    def _located(self, verdict: InvalidEvent, place: int, raw: bytes) -> InvalidEvent:
        if verdict.reason is Reason.NOT_AN_OBJECT:
            return misplaced(self._field, (*self._steps, place), raw, array=False)
        detail = f"element {place} of {show_path(self._steps)}: {verdict.detail}"
        return InvalidEvent(verdict.reason, verdict.field, detail)

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

    def place(self, index: int) -> tuple[int, int]:
        """Return the index of an event's record, and the event's index in the record's array."""
        record = bisect_right(self.starts, index) - 1
        return record, index - self.starts[record]

    def text(self, raw: bytes, place: int) -> bytes:
        """Return the JSON text of the element at index `place` in a valid record's array."""
        return _texts(self.document(raw), self.steps)[place]


@lru_cache(maxsize=32)  # cached, because the elements of a record are requested one after the other
def _texts(raw: bytes, steps: Steps) -> list[bytes]:
    return items(text_at(raw, steps) or b"[]")


def _within(field: FieldSpec) -> Steps:
    return field.steps[len(field.array or ()) + 1 :]
