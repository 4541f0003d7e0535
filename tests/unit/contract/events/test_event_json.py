"""Tests of fields of type json, which are stored with the event as they were sent."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tidemill_contract.events.decoder import EventDecoder, InvalidEvent, Reason
from tidemill_contract.resource.spec import PipelineSpec

NOW = 1_700_000_000_000
FIELDS: list[dict[str, Any]] = [
    {"name": "k", "type": "string"},
    {"name": "size", "type": "integer", "path": "payload.size"},
    {"name": "payload", "type": "json"},
    {"name": "second", "type": "json", "path": "list[1].x"},
]


def make_decoder(fields: list[dict[str, Any]] = FIELDS, *, strict: bool = False) -> EventDecoder:
    window, metrics = {"type": "tumbling", "size": "1m"}, [{"name": "n", "function": "count"}]
    spec = {"source": {"fields": fields, "strict": strict}, "events": {"store": True}}
    return EventDecoder(
        PipelineSpec.model_validate({**spec, "aggregations": [{"name": "a", "window": window, "metrics": metrics}]})
    )


def stored(raw: bytes, decoder: EventDecoder | None = None) -> Any:
    """Return the stored text of an event, or its error."""
    decoder = decoder or make_decoder()
    batch = decoder.decode_all([raw, b"{}"], NOW)
    beside = decoder.decode_all([raw, b'{"k": "\\u0000"}'], NOW).invalid.get(0)
    assert (beside and beside.detail) == (batch.invalid.get(0) and batch.invalid[0].detail)
    error = decoder.refusal(raw, NOW)
    if error is not None:
        assert batch.invalid[0].detail == error.detail
        return error
    assert not batch.invalid
    alone = decoder.as_json([decoder.decode(raw, NOW)], [raw])
    assert decoder.as_json(batch.events, [raw, b"{}"])[0] == alone[0]
    return alone[0]


STORED: list[tuple[str, str, str]] = [
    ("an object that another field reads too", '{"size": 3, "b": [1.50, 1e5]}', '{"size": 3, "b": [1.50, 1e5]}'),
    ("more digits than a float", '{"n": 12345678901234567890.123456789}', '{"n": 12345678901234567890.123456789}'),
    ("numbers beyond a double", '{"n": [1e400, -1e400]}', '{"n": [1e400, -1e400]}'),
    ("null", "null", "null"),
    ("text beyond ASCII", '{"a": "Süd"}', '{"a": "Süd"}'),
    ("escapes", '{"a": "\\ud83c\\udf0a \\\\u0000"}', '{"a": "\\ud83c\\udf0a \\\\u0000"}'),
]


@pytest.mark.parametrize(("reason", "sent", "expected"), STORED, ids=[row[0] for row in STORED])
def test_json_is_stored_as_it_was_sent(reason: str, sent: str, expected: str) -> None:
    text = stored(b'{"k": "a", "payload": ' + sent.encode() + b', "list": [0, {"x": false}]}')
    size = json.loads(sent)["size"] if "size" in sent else None
    size_text = "null" if size is None else str(size)
    assert text == f'{{"k":"a","size":{size_text},"payload":{expected},"second":false}}'


def test_an_absent_json_member_is_stored_as_null() -> None:
    nothing = {"k": None, "size": None, "payload": None, "second": None}
    for raw in (b"{}", b'{"list": [0]}', b'{"list": [0, 5]}', b'{"list": "x"}', b'{"list": {"x": 1}}'):
        assert json.loads(stored(raw)) == nothing


REFUSED = [
    ("a NUL", b'{"payload": {"a": "x\\u0000"}}', Reason.BAD_STRING, "payload", "contains a NUL"),
    ("a value that is not UTF-8", b'{"payload": {"a": "\xff"}}', Reason.NOT_JSON, None, "is binary (such as"),
    ("a name that is not UTF-8", b'{"\xff": 1, "payload": 2}', Reason.NOT_JSON, None, "is binary (such as"),
    ("half a surrogate pair", b'{"payload": {"a": "\\ud83c"}}', Reason.NOT_JSON, None, "contains half a surrogate"),
]


@pytest.mark.parametrize(("name", "raw", "reason", "field", "detail"), REFUSED, ids=[row[0] for row in REFUSED])
def test_json_that_postgres_cannot_store_is_refused(
    name: str, raw: bytes, reason: Reason, field: str | None, detail: str
) -> None:
    error = stored(raw)
    assert isinstance(error, InvalidEvent)
    assert (error.reason, error.field) == (reason, field)
    assert error.detail.startswith(detail)


def test_members_that_are_not_stored_may_contain_a_nul() -> None:
    assert json.loads(stored(b'{"k": "a", "other": ["\\u0000"]}'))["k"] == "a"


def test_a_pipeline_may_have_only_json_fields() -> None:
    decoder = make_decoder([{"name": "payload", "type": "json", "path": "a"}])
    assert stored(b'{"a": [1, 2]}', decoder) == '{"payload":[1, 2]}'


def test_a_strict_source_may_have_json_fields() -> None:
    decoder = make_decoder(
        [{"name": "k", "type": "string"}, {"name": "payload", "type": "json", "path": "a.b"}], strict=True
    )
    assert stored(b'{"k": "x", "a": {"b": {"c": 1}}}', decoder) == '{"k":"x","payload":{"c": 1}}'
    assert stored(b'{"a": {"c": 1}}', decoder).reason is Reason.UNKNOWN_FIELD
