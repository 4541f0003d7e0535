"""Tests of envelopes: the events in them, fields that are read from envelopes, and deletes."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill_contract.events.decoder import InvalidEvent, Reason
from tidemill_contract.events.records import RecordDecoder
from tidemill_contract.resource.spec import PipelineSpec

NOW = 1_795_800_000_000
ROW = {"id": 7, "amount": 12.5, "at": "2026-11-01T10:00:00.123456Z"}
READ = {"id": 7, "amount": 12.5, "at": 1_793_527_200_123}
OP = {"name": "op", "type": "string", "from": "envelope"}
COMMITTED = {"name": "committed", "type": "timestamp", "from": "envelope", "path": "source.ts_ms"}


@dataclass(frozen=True)
class Sent:
    """A record of a topic."""

    own_value: bytes | None
    own_key: bytes | None = None

    def value(self) -> bytes | None:
        return self.own_value

    def key(self) -> bytes | None:
        return self.own_key

    def headers(self) -> list[tuple[str, bytes | None]]:
        return []

    def partition(self) -> int:
        return 0

    def offset(self) -> int:
        return 0

    def timestamp(self) -> tuple[int, int]:
        return 1, NOW


def make_decoder(
    envelope: str = "none",
    *further: dict[str, Any],
    deletes: str = "deadLetter",
    time: str | None = "at",
    **fields: Any,
) -> RecordDecoder:
    """Return a decoder of an envelope, with `further` fields, and `fields` as members of fields by name."""
    base_fields: list[dict[str, Any]] = [
        {"name": "id", "type": "integer", "required": True},
        {"name": "amount", "type": "number"},
        {"name": "at", "type": "timestamp"},
    ]
    source = {
        "format": {"envelope": envelope, "deletes": deletes},
        "fields": [{**field, **fields.get(field["name"], {})} for field in base_fields] + list(further),
        "eventTime": {"field": time},
    }
    metrics = [{"name": "n", "function": "count"}, {"name": "last", "function": "last", "field": "amount"}]
    aggregations = [{"name": "a", "window": {"type": "tumbling", "size": "1m"}, "metrics": metrics}]
    spec = PipelineSpec.model_validate({"source": source, "aggregations": aggregations})
    return RecordDecoder(PipelineSpec.model_validate_json(spec.model_dump_json(by_alias=True)), exact=True)


def read(decoder: RecordDecoder, *values: Any) -> list[Any]:
    """Return the fields of each record, its error, or None if the record is ignored."""
    raws = [value if value is None or isinstance(value, bytes) else json.dumps(value).encode() for value in values]
    records = [Sent(raw) for raw in raws]
    event_bytes = [raw or b"" for raw in raws]
    decoded = decoder.decode_all(event_bytes, NOW, records=records)
    results: list[Any] = []
    for index, event in enumerate(decoded.events):
        error = decoded.invalid.get(index)
        alone = decoder.refusal(event_bytes[index], NOW, records[index])
        assert (error and error.detail) == (alone and alone.detail)
        assert (event is None) == (error is not None or index in decoded.ignored)
        results.append(error)
        if event is not None:
            results[-1] = json.loads(decoder.as_json([event], [event_bytes[index]])[0])
            assert results[-1] == {name: decoder.values([event], name)[0] for name in results[-1]}
    return results


def change(op: str | None, before: Any = None, after: Any = None, **further: Any) -> dict[str, Any]:
    return {"before": before, "after": after, "source": {"ts_ms": NOW, "table": "t"}, "op": op, **further}


DEBEZIUM = make_decoder("debezium", OP, COMMITTED)


@pytest.mark.parametrize("op", ["c", "u", "r"])
@pytest.mark.parametrize("with_schema", [False, True])
def test_a_created_updated_or_read_row_is_an_event(op: str, with_schema: bool) -> None:
    sent = change(op, {"id": 1}, ROW)
    value = {"schema": {"type": "struct", "op": "c"}, "payload": sent} if with_schema else sent
    expected = {**READ, "op": op, "committed": NOW}
    assert read(DEBEZIUM, value) == [expected]
    assert read(DEBEZIUM, value, sent, value) == [expected] * 3


def test_the_microseconds_of_event_times_in_rows_and_envelopes_are_kept() -> None:
    """The metrics `first` and `last` order events by microseconds."""
    raw = json.dumps(change("c", None, ROW, at="2026-11-01T10:00:00.000789Z")).encode()
    assert DEBEZIUM.decode_all([raw], NOW).micros == [456]
    decoder = make_decoder("debezium", at={"from": "envelope"})
    decoded = decoder.decode_all([raw], NOW)
    assert (decoder.values(decoded.events, "at"), decoded.micros) == ([1_793_527_200_000], [789])


DELETE = change("d", {"id": 7, "amount": 12.5, "at": ROW["at"]})
DELETES = [
    ("ignore", DELETE, None),
    ("ignore", None, None),
    ("ignore", {"schema": {}, "payload": None}, None),
    ("deadLetter", {"schema": {}, "payload": None}, "the record is a tombstone (no value; deletes a key)"),
    ("event", {"schema": {}, "payload": None}, None),
    ("ignore", change("t"), None),
    ("deadLetter", DELETE, "the change event reports a deleted row (op d); set source.format.deletes to ignore (skip"),
    ("deadLetter", None, "the record is a tombstone (no value; deletes a key)"),
    ("deadLetter", change("t"), "the change event reports a truncated table (op t); set"),
    ("event", DELETE, {**READ, "op": "d", "committed": NOW}),
    ("event", None, None),
    ("event", change("d"), "(op d), but the record does not contain the deleted row; let the source send the row"),
    ("event", change("t"), "(op t), but the record does not contain the deleted row"),
]  # fmt: skip


@pytest.mark.parametrize(("policy", "sent", "expected"), DELETES)
def test_deletes_and_tombstones_are_handled_as_the_policy_says(policy: str, sent: Any, expected: Any) -> None:
    decoder = make_decoder("debezium", OP, COMMITTED, deletes=policy)
    written = change("c", None, ROW)
    alone, among = read(decoder, sent), read(decoder, written, sent, written)
    counted = {**READ, "op": "c", "committed": NOW}
    assert [among[0], among[2]] == [counted, counted]
    for result in (alone[0], among[1]):
        if isinstance(expected, str):
            assert result.reason is Reason.DELETED
            assert expected in result.detail
        else:
            assert result == expected


@pytest.mark.parametrize("policy", ["ignore", "deadLetter"])
def test_tombstones_without_an_envelope_follow_the_policy(policy: str) -> None:
    """An empty value is not a tombstone."""
    event, tombstone, empty = read(make_decoder(deletes=policy), ROW, None, b"")
    assert event == READ
    assert (tombstone is None) == (policy == "ignore")
    assert (empty.reason, empty.detail.partition(";")[0]) == (Reason.NOT_JSON, "the record is empty")


def test_the_payload_of_kafka_connect_is_the_event() -> None:
    schema = {"type": "struct", "fields": [], "optional": False}
    decoder = make_decoder("connect", {"name": "kind", "type": "string", "from": "envelope", "path": "schema.type"})
    kinds = [ROW, None, {"id": "x"}]
    results = read(decoder, *({"schema": schema, "payload": payload} for payload in kinds))
    assert results[0] == {**READ, "kind": "struct"}
    assert (results[1].reason, results[1].detail.partition(";")[0]) == (
        Reason.DELETED, "the payload is null, which deletes a key",
    )  # fmt: skip
    assert (results[2].reason, results[2].field) == (Reason.MISTYPED, "id")
    assert read(make_decoder("connect", deletes="ignore"), {"schema": None, "payload": None}) == [None]


ATTRIBUTES = {"specversion": "1.0", "id": "e1", "source": "/shop", "type": "paid", "time": "2026-11-01T10:00:00Z"}
CLOUD = make_decoder(
    "cloudevents",
    {"name": "kind", "type": "string", "from": "envelope", "path": "type"},
    {"name": "tenant", "type": "string", "from": "envelope", "default": "none"},
    id={"required": False},
    at={"from": "envelope", "path": "time"},
)
ABOUT = {"kind": "paid", "tenant": "none", "at": 1_793_527_200_000}


def test_the_data_of_a_cloud_event_is_the_event_and_fields_may_read_its_attributes() -> None:
    coded = base64.b64encode(json.dumps({"id": 3}).encode()).decode()
    sent = [
        {**ATTRIBUTES, "data": {"id": 1, "amount": 2}, "tenant": "acme"},
        {**ATTRIBUTES, "data_base64": coded},
        ATTRIBUTES,
    ]
    expected = [
        {"id": 1, "amount": 2.0, **ABOUT, "tenant": "acme"},
        {"id": 3, "amount": None, **ABOUT},
        {"id": None, "amount": None, **ABOUT},
    ]
    assert read(CLOUD, *sent) == expected
    assert [read(CLOUD, each)[0] for each in sent] == expected


REFUSED = [
    ("debezium", ROW, Reason.NOT_AN_ENVELOPE, "a Debezium change event (op, before, after), got the members id"),
    ("debezium", {}, Reason.NOT_AN_ENVELOPE, "got an empty object; change source.format.envelope (`none`"),
    ("debezium", change("c"), Reason.NOT_AN_ENVELOPE, "the change event with op c has no row in after"),
    ("debezium", change("m"), Reason.NOT_AN_ENVELOPE, "a change event with op m has no row"),
    ("debezium", {"op": 5}, Reason.MISTYPED, "op: expected string, got number 5"),
    ("debezium", change("c", None, [1]), Reason.NOT_AN_OBJECT, "expected an object, got an array"),
    ("debezium", change("c", None, {"id": "x"}), Reason.MISTYPED, 'id: expected integer, got string "x"'),
    ("debezium", b"{", Reason.NOT_JSON, "is not JSON"),
    ("debezium", b"[]", Reason.NOT_AN_OBJECT, "expected an object, got an array"),
    ("debezium", b'{"op": "c", "after": {"id": 1}}}', Reason.NOT_JSON, "is not JSON"),
    ("connect", ROW, Reason.NOT_AN_ENVELOPE, "a Kafka Connect envelope (schema, payload), got the members id,"),
    ("connect", {"payload": "x"}, Reason.NOT_AN_OBJECT, "expected an object"),
    ("cloudevents", ROW, Reason.NOT_AN_ENVELOPE, "expected a CloudEvent (specversion, type, source, data)"),
    ("cloudevents", {**ATTRIBUTES, "data_base64": "?"}, Reason.NOT_AN_ENVELOPE, "data_base64 is not base64"),
    ("cloudevents", {**ATTRIBUTES, "data": "text"}, Reason.NOT_AN_OBJECT, 'expected an object, got "text"'),
]  # fmt: skip


@pytest.mark.parametrize(("envelope", "sent", "reason", "detail"), REFUSED)
def test_an_envelope_that_cannot_be_opened_is_refused_with_the_reason(
    envelope: str, sent: Any, reason: Reason, detail: str
) -> None:
    decoder = make_decoder(envelope)
    (error,) = read(decoder, sent)
    assert isinstance(error, InvalidEvent)
    assert error.reason is reason
    assert detail in error.detail
    assert len(error.detail) < 400


def test_the_detail_of_an_invalid_member_of_an_envelope_names_field_and_path() -> None:
    (error,) = read(DEBEZIUM, change("c", None, ROW) | {"source": {"ts_ms": "soon"}})
    assert (error.reason, error.field) == (Reason.MISTYPED, "committed")
    assert error.detail.endswith("; the field is read from the envelope's source.ts_ms")
    assert error.detail.count("the field is read from") == 1


@pytest.mark.parametrize(
    ("envelope", "path", "sent"),
    [
        ("debezium", "before.amount", change("c", None, ROW)),
        ("debezium", "before.amount", {"schema": {}, "payload": change("c", None, ROW)}),
        ("connect", "schema.name", {"schema": None, "payload": ROW}),
        ("cloudevents", "subject", {**ATTRIBUTES, "data": {**ROW, "op": "x", "before": 1}}),
    ],
)
def test_an_event_is_valid_if_its_envelope_lacks_an_optional_field(envelope: str, path: str, sent: Any) -> None:
    decoder = make_decoder(envelope, {"name": "extra", "type": "string", "from": "envelope", "path": path})
    assert read(decoder, sent) == [{**READ, "extra": None}]


def test_the_detail_suggests_no_envelope_if_the_source_has_an_envelope() -> None:
    decoder = make_decoder("debezium", at={"from": "envelope", "path": "source.at"})
    (error,) = read(decoder, change("c", None, ROW))
    assert error.detail == "at is missing; send it; the field is read from the envelope's source.at"


def test_json_of_the_row_is_stored() -> None:
    spec = {
        "source": {
            "format": {"envelope": "debezium"},
            "fields": [{"name": "id", "type": "integer"}, {"name": "doc", "type": "json"}],
        },
        "events": {"store": True},
        "aggregations": [
            {"name": "a", "window": {"type": "tumbling", "size": "1m"}, "metrics": [{"name": "n", "function": "count"}]}
        ],
    }
    decoder = RecordDecoder(PipelineSpec.model_validate(spec))
    raw = json.dumps(change("c", {"doc": 1}, {"id": 1, "doc": {"a": [1.50]}})).encode()
    events = decoder.decode_all([raw], NOW).events
    assert json.loads(decoder.as_json(events, [raw])[0]) == {"id": 1, "doc": {"a": [1.5]}}


@given(
    st.lists(st.sampled_from([change("c", None, ROW), DELETE, None, ROW, change("u", None, {"id": None})]), max_size=9)
)
def test_a_record_gets_the_same_result_alone_and_in_a_batch(sent: list[Any]) -> None:
    for policy in ("ignore", "event"):
        decoder = make_decoder("debezium", OP, deletes=policy)
        alone = [read(decoder, each)[0] for each in sent]
        for single, in_batch in zip(alone, read(decoder, *sent), strict=True):
            assert str(single) == str(in_batch)
