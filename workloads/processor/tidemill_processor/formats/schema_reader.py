"""Reads records whose schemas are in a registry, with one decoding plan for each schema id.

A plan decodes all records of a batch together. If a plan cannot decode a batch, the plan decodes smaller groups, and
finally single records. A record that the fast decoder cannot read is converted to JSON and validated.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from tidemill_contract.events.decoder import DecodedBatch, EventDecoder
from tidemill_contract.events.event_errors import decoder_failure, unknown_member
from tidemill_contract.events.fields import MAX_EVENT_BYTES, with_fields
from tidemill_contract.events.formats.changes import EXPECTED_ENVELOPE, row_of
from tidemill_contract.events.formats.csv_lines import without_paths
from tidemill_contract.events.formats.envelopes import wrong_envelope
from tidemill_contract.events.formats.framing import FRAME_BYTES, check_framing
from tidemill_contract.events.formats.opener import DeletePolicy
from tidemill_contract.events.invalid_events import InvalidEvent, Reason
from tidemill_contract.events.json_fields import JSON
from tidemill_contract.resource.paths import Steps
from tidemill_contract.resource.source import FieldSpec
from tidemill_contract.resource.spec import PipelineSpec
from tidemill_processor.formats.registry import Registry, Schema, UnknownSchemaError

_GROUP = 64


class DecodingPlan(ABC):
    """Decodes the records of one schema."""

    @abstractmethod
    def decode_many(self, raws: Sequence[bytes], now_ms: int) -> DecodedBatch | None:
        """Decode many records at once, or return None if each record must be decoded with `decode_one`."""

    @abstractmethod
    def decode_one(self, raw: bytes, now_ms: int) -> DecodedBatch | None:
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
        flat_spec: the spec for the events that `document` returns. These events have one member for each field.
        exact: whether to decode event times in microseconds too.
        strict: whether to refuse schemas with members that no field reads.
        reads_changes: whether records are change events of Debezium.
        row_path: the path of the row in a record: `after` for change events, otherwise empty.
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
        self.flat_spec = without_paths(_inner_spec(spec))
        self._json_decoder = EventDecoder(self.flat_spec, exact=exact)
        self.times = self._json_decoder.times
        self.deletes = DeletePolicy(spec.source.record_format.deletes)
        self.reads_changes = spec.source.record_format.envelope == "debezium"
        self.row_path: Steps = ("after",) if self.reads_changes else ()
        self.paths = {
            field.name: field.member_path if field.origin == "envelope" else (*self.row_path, *field.member_path)
            for field in self.fields
        }
        self._plans: dict[bytes, DecodingPlan] = {}

    @abstractmethod
    def plan(self, schema: Schema, schema_id: int) -> DecodingPlan:
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
            raise wrong_envelope(list(change), EXPECTED_ENVELOPE)
        return row_of(op, change.get("before"), change.get("after"), self.deletes)

    def refusal(self, unread: Steps | None) -> InvalidEvent | None:
        """Return the error for `unread`, the path of a member without a field. If there is no path, return None."""
        members = [field.member_path for field in self.fields if field.origin == "value"]
        return None if unread is None else unknown_member(unread[len(self.row_path) :], members)

    def unavailable_frames(self, raws: Iterable[bytes]) -> frozenset[bytes]:
        """Return the frames (first bytes of records) whose schemas cannot be read now."""
        frames = {raw[:FRAME_BYTES] for raw in raws}.difference(self._plans)
        numbers = {frame: int.from_bytes(frame[1:]) for frame in frames if len(frame) == FRAME_BYTES and frame[0] == 0}
        unavailable = self.registry.find_unavailable(numbers.values()) if numbers else frozenset()
        return frozenset(frame for frame, number in numbers.items() if number in unavailable)

    def read(self, raws: Sequence[bytes], now_ms: int, tombstones: Collection[int]) -> DecodedBatch:
        """Decode the values of records. `tombstones` has the indexes of records without a value.

        Raises:
            RegistryUnavailableError: the registry does not answer, and a record's schema is still unknown.
        """
        frames = {raw[:FRAME_BYTES] for raw in raws}
        if len(frames) == 1 and not tombstones:
            return self._decode_one_schema(raws, now_ms)
        events: list[Any] = [None] * len(raws)
        micros = [0] * len(raws)
        invalid: dict[int, InvalidEvent] = {}
        ignored = set()
        indexes_by_frame: dict[bytes, list[int]] = {}
        for index, raw in enumerate(raws):
            if index not in tombstones:
                indexes_by_frame.setdefault(raw[:FRAME_BYTES], []).append(index)
                continue
            try:
                self.deletes.check_tombstone()
                ignored.add(index)
            except InvalidEvent as verdict:
                invalid[index] = verdict
        for indexes in indexes_by_frame.values():
            decoded = self._decode_one_schema([raws[index] for index in indexes], now_ms)
            for index, event, each in zip(indexes, decoded.events, decoded.micros or [0] * len(indexes), strict=True):
                events[index], micros[index] = event, each
            invalid |= {indexes[position]: verdict for position, verdict in decoded.invalid.items()}
            ignored |= {indexes[position] for position in decoded.ignored}
        return DecodedBatch(events, dict(sorted(invalid.items())), micros if self.exact else None, frozenset(ignored))

    def _decode_one_schema(self, raws: Sequence[bytes], now_ms: int) -> DecodedBatch:
        try:
            plan = self._plan_of(raws[0])
        except InvalidEvent as verdict:
            return DecodedBatch([None] * len(raws), dict.fromkeys(range(len(raws)), verdict))
        whole = plan.decode_many(raws, now_ms) if max(map(len, raws)) <= MAX_EVENT_BYTES else None
        if whole is not None:
            return whole
        events: list[Any] = []
        micros: list[int] = []
        invalid: dict[int, InvalidEvent] = {}
        ignored = set()
        for start in range(0, len(raws), _GROUP):
            group = raws[start : start + _GROUP]
            fits = len(raws) > _GROUP and max(map(len, group)) <= MAX_EVENT_BYTES
            decoded = plan.decode_many(group, now_ms) if fits else None
            if decoded is not None:
                events += decoded.events
                micros += decoded.micros or [0] * len(group)
                continue
            for index, raw in enumerate(group, start):
                single = _decode_alone(plan, raw, now_ms)
                if single is None:
                    ignored.add(index)
                    single = DecodedBatch([None], {})
                elif single.invalid:
                    invalid[index] = single.invalid[0]
                events.append(single.events[0])
                micros += single.micros or [0]
        return DecodedBatch(events, invalid, micros if self.exact else None, frozenset(ignored))

    def _plan_of(self, raw: bytes) -> DecodingPlan:
        frame = raw[:FRAME_BYTES]
        cached = self._plans.get(frame)
        if cached is not None:
            return cached
        check_framing(raw)
        schema_id = int.from_bytes(frame[1:])
        try:
            schema = self.registry.schema(schema_id)
        except UnknownSchemaError as error:
            remedy = "name the registry of the writers in source.format.registry, or register the schema again"
            raise InvalidEvent(Reason.UNKNOWN_SCHEMA, None, f"{error}; {remedy}") from None
        try:
            plan = self.plan(schema, schema_id)
        except ValueError as error:
            detail = f"schema {schema_id} cannot be used: {error}; correct source.format.type, or the writer's schema"
            raise InvalidEvent(Reason.UNKNOWN_SCHEMA, None, detail[:400]) from None
        self._plans[frame] = plan
        return plan

    def values(self, events: Sequence[Any], name: str) -> list[Any]:
        """Return a field's value in each event."""
        return self._json_decoder.values(events, name)

    def put(self, events: Sequence[Any], name: str, values: Sequence[Any]) -> None:
        """Set a field of the events to `values`, for example to the keys of the records."""
        self._json_decoder.put(events, name, values)

    def as_json(self, events: Sequence[Any], raws: Sequence[bytes]) -> list[str]:
        """Return the fields of each event as a JSON object."""
        if self._keeps_json:
            raws = list(map(self.document, raws))
        return self._json_decoder.as_json(events, raws)

    def document(self, raw: bytes) -> bytes:
        """Return the event of a valid record as JSON."""
        return self._plan_of(raw).document(raw) or b"{}"


def _inner_spec(spec: PipelineSpec) -> PipelineSpec:
    return with_fields(spec, [_without_envelope(field) for field in spec.source.fields], format=None)


def with_changed(spec: PipelineSpec, fields: Mapping[str, FieldSpec]) -> PipelineSpec:
    """Return a copy of the spec in which `fields` replace the fields with the same names."""
    return with_fields(spec, [fields.get(field.name, field) for field in spec.source.fields])


def _without_envelope(field: FieldSpec) -> FieldSpec:
    return field.model_copy(update={"taken_from": None}) if field.origin == "envelope" else field


def _decode_alone(plan: DecodingPlan, raw: bytes, now_ms: int) -> DecodedBatch | None:
    """Decode one record with the decoder of batches. So the result does not depend on other records."""
    try:
        _check_size(raw)
        return plan.decode_many([raw], now_ms) or plan.decode_one(raw, now_ms)
    except InvalidEvent as verdict:
        return DecodedBatch([None], {0: verdict})
    except Exception as error:
        return DecodedBatch([None], {0: decoder_failure(error)})


def _check_size(raw: bytes) -> None:
    if len(raw) > MAX_EVENT_BYTES:
        raise InvalidEvent(Reason.TOO_LARGE, None, f"{len(raw)} bytes; at most {MAX_EVENT_BYTES} are allowed")
