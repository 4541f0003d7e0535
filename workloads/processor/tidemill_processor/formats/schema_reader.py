"""Reads records whose schemas are in a registry, with one decoding plan for each schema id.

A plan decodes all records of a batch together. If a plan cannot decode a batch, the plan decodes smaller groups, and
finally single records. A record that the fast decoder cannot read is converted to JSON and validated.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from tidemill_contract.events.decoder import Decoded, EventDecoder
from tidemill_contract.events.details import failed, undeclared
from tidemill_contract.events.fields import MAX_EVENT_BYTES, with_fields
from tidemill_contract.events.formats.changes import EXPECTED, row_of
from tidemill_contract.events.formats.csv_lines import flat
from tidemill_contract.events.formats.envelopes import no_envelope
from tidemill_contract.events.formats.framing import FRAME_BYTES, check_framed
from tidemill_contract.events.formats.opening import Deletes
from tidemill_contract.events.kept_json import JSON
from tidemill_contract.events.verdicts import InvalidEvent, Reason
from tidemill_contract.resource.paths import Steps
from tidemill_contract.resource.source import FieldSpec
from tidemill_contract.resource.spec import PipelineSpec
from tidemill_processor.formats.registry import Registry, Schema, UnknownSchemaError

_GROUP = 64


class Plan(ABC):
    """Decodes the records of one schema."""

    @abstractmethod
    def together(self, raws: Sequence[bytes], now_ms: int) -> Decoded | None:
        """Decode many records at once, or return None if each record must be decoded with `single`."""

    @abstractmethod
    def single(self, raw: bytes, now_ms: int) -> Decoded | None:
        """Decode one record, or return None if the policy for deletes ignores the record.

        Raises:
            InvalidEvent: the record cannot be read.
        """

    @abstractmethod
    def document(self, raw: bytes) -> bytes | None:
        """Return the event of a record as JSON. If the policy for deletes ignores the record, return None.

        Raises:
            InvalidEvent: the record cannot be read.
        """


class SchemaReader(ABC):
    """Decodes the values of one pipeline's records. The class implements `Reader`.

    Attributes:
        flat: the spec for the events that `document` returns. These events have one member for each field.
        exact: whether to decode event times in microseconds too.
        strict: whether to refuse schemas with members that no field reads.
        changes: whether records are change events of Debezium.
        at_row: the path of the row in a record: `after` for change events, otherwise empty.
        paths: the path of each field in a record, by the field's name.
    """

    def __init__(
        self, spec: PipelineSpec, registry: Registry, *, exact: bool = False, needed: Collection[str] | None = None
    ) -> None:
        """Create the reader.

        Args:
            spec: the pipeline's spec.
            registry: the client of the registry with the schemas.
            exact: whether to decode event times in microseconds too.
            needed: the names of the fields to read, or None for all fields.
        """
        self.registry, self.exact = registry, exact
        self.strict = spec.source.strict
        self.fields = [field for field in spec.source.fields if field.origin in ("value", "envelope")]
        names = {field.name for field in self.fields}
        required = {field.name for field in self.fields if field.required}
        self.needed = names if needed is None else names & {*needed, *required, spec.source.event_time.field}
        self._keeps_json = any(field.type == JSON for field in self.fields)
        self.flat = flat(_within(spec))
        self._plain = EventDecoder(self.flat, exact=exact)
        self.times = self._plain.times
        self.deletes = Deletes(spec.source.written.deletes)
        self.changes = spec.source.written.envelope == "debezium"
        self.at_row: Steps = ("after",) if self.changes else ()
        self.paths = {
            field.name: field.member if field.origin == "envelope" else (*self.at_row, *field.member)
            for field in self.fields
        }
        self._plans: dict[bytes, Plan] = {}

    @abstractmethod
    def plan(self, schema: Schema, number: int) -> Plan:
        """Return the decoding plan for a schema.

        Raises:
            ValueError: the schema cannot be used. The message says why.
        """

    def row(self, change: Mapping[str, Any]) -> Any:
        """Return the row in a change event. If the policy for deletes ignores the change, return None.

        Raises:
            InvalidEvent: the record has to become a dead letter.
        """
        op = change.get("op")
        if op is None:
            raise no_envelope(list(change), EXPECTED)
        return row_of(op, change.get("before"), change.get("after"), self.deletes)

    def refusal(self, unread: Steps | None) -> InvalidEvent | None:
        """Return the error for `unread`, the path of a member without a field. If there is no path, return None."""
        members = [field.member for field in self.fields if field.origin == "value"]
        return None if unread is None else undeclared(unread[len(self.at_row) :], members)

    def waiting(self, raws: Iterable[bytes]) -> frozenset[bytes]:
        """Return the frames (first bytes of records) whose schemas cannot be read now."""
        frames = {raw[:FRAME_BYTES] for raw in raws}.difference(self._plans)
        numbers = {frame: int.from_bytes(frame[1:]) for frame in frames if len(frame) == FRAME_BYTES and frame[0] == 0}
        away = self.registry.away(numbers.values()) if numbers else frozenset()
        return frozenset(frame for frame, number in numbers.items() if number in away)

    def read(self, raws: Sequence[bytes], now_ms: int, tombstones: Collection[int]) -> Decoded:
        """Decode the values of records. `tombstones` has the indexes of records without a value.

        Raises:
            RegistryAwayError: the registry does not answer, and a record's schema is still unknown.
        """
        frames = {raw[:FRAME_BYTES] for raw in raws}
        if len(frames) == 1 and not tombstones:
            return self._of_schema(raws, now_ms)
        events: list[Any] = [None] * len(raws)
        micros = [0] * len(raws)
        invalid: dict[int, InvalidEvent] = {}
        ignored = set()
        places: dict[bytes, list[int]] = {}
        for index, raw in enumerate(raws):
            if index not in tombstones:
                places.setdefault(raw[:FRAME_BYTES], []).append(index)
                continue
            try:
                self.deletes.check_tombstone()
                ignored.add(index)
            except InvalidEvent as verdict:
                invalid[index] = verdict
        for at in places.values():
            decoded = self._of_schema([raws[index] for index in at], now_ms)
            for index, event, each in zip(at, decoded.events, decoded.micros or [0] * len(at), strict=True):
                events[index], micros[index] = event, each
            invalid |= {at[place]: verdict for place, verdict in decoded.invalid.items()}
            ignored |= {at[place] for place in decoded.ignored}
        return Decoded(events, dict(sorted(invalid.items())), micros if self.exact else None, frozenset(ignored))

    def _of_schema(self, raws: Sequence[bytes], now_ms: int) -> Decoded:
        try:
            plan = self._plan_of(raws[0])
        except InvalidEvent as verdict:
            return Decoded([None] * len(raws), dict.fromkeys(range(len(raws)), verdict))
        whole = plan.together(raws, now_ms) if max(map(len, raws)) <= MAX_EVENT_BYTES else None
        if whole is not None:
            return whole
        events: list[Any] = []
        micros: list[int] = []
        invalid: dict[int, InvalidEvent] = {}
        ignored = set()
        for start in range(0, len(raws), _GROUP):
            group = raws[start : start + _GROUP]
            fits = len(raws) > _GROUP and max(map(len, group)) <= MAX_EVENT_BYTES
            decoded = plan.together(group, now_ms) if fits else None
            if decoded is not None:
                events += decoded.events
                micros += decoded.micros or [0] * len(group)
                continue
            for index, raw in enumerate(group, start):
                single = _alone(plan, raw, now_ms)
                if single is None:
                    ignored.add(index)
                    single = Decoded([None], {})
                elif single.invalid:
                    invalid[index] = single.invalid[0]
                events.append(single.events[0])
                micros += single.micros or [0]
        return Decoded(events, invalid, micros if self.exact else None, frozenset(ignored))

    def _plan_of(self, raw: bytes) -> Plan:
        frame = raw[:FRAME_BYTES]
        cached = self._plans.get(frame)
        if cached is not None:
            return cached
        check_framed(raw)
        number = int.from_bytes(frame[1:])
        try:
            schema = self.registry.schema(number)
        except UnknownSchemaError as error:
            remedy = "name the registry of the writers in source.format.registry, or register the schema again"
            raise InvalidEvent(Reason.UNKNOWN_SCHEMA, None, f"{error}; {remedy}") from None
        try:
            made = self.plan(schema, number)
        except ValueError as error:
            detail = f"schema {number} cannot be used: {error}; correct source.format.type, or the writer's schema"
            raise InvalidEvent(Reason.UNKNOWN_SCHEMA, None, detail[:400]) from None
        self._plans[frame] = made
        return made

    def values(self, events: Sequence[Any], name: str) -> list[Any]:
        """Return a field's value in each event."""
        return self._plain.values(events, name)

    def put(self, events: Sequence[Any], name: str, values: Sequence[Any]) -> None:
        """Set a field of the events to `values`, for example to the keys of the records."""
        self._plain.put(events, name, values)

    def as_json(self, events: Sequence[Any], raws: Sequence[bytes]) -> list[str]:
        """Return the fields of each event as a JSON object."""
        if self._keeps_json:
            raws = list(map(self.document, raws))
        return self._plain.as_json(events, raws)

    def document(self, raw: bytes) -> bytes:
        """Return the event of a valid record as JSON."""
        return self._plan_of(raw).document(raw) or b"{}"


def _within(spec: PipelineSpec) -> PipelineSpec:
    return with_fields(spec, [_moved(field) for field in spec.source.fields], format=None)


def with_changed(spec: PipelineSpec, fields: Mapping[str, FieldSpec]) -> PipelineSpec:
    """Return a copy of the spec in which `fields` replace the fields with the same names."""
    return with_fields(spec, [fields.get(field.name, field) for field in spec.source.fields])


def _moved(field: FieldSpec) -> FieldSpec:
    return field.model_copy(update={"taken_from": None}) if field.origin == "envelope" else field


def _alone(plan: Plan, raw: bytes, now_ms: int) -> Decoded | None:
    """Decode one record with the decoder of batches. So the result does not depend on other records."""
    try:
        _check_size(raw)
        return plan.together([raw], now_ms) or plan.single(raw, now_ms)
    except InvalidEvent as verdict:
        return Decoded([None], {0: verdict})
    except Exception as error:
        return Decoded([None], {0: failed(error)})


def _check_size(raw: bytes) -> None:
    if len(raw) > MAX_EVENT_BYTES:
        raise InvalidEvent(Reason.TOO_LARGE, None, f"{len(raw)} bytes; at most {MAX_EVENT_BYTES} are allowed")
