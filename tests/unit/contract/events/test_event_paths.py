"""Tests of paths and defaults: members in objects and arrays, and members of any name."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidemill_contract.events.decoder import EventDecoder, InvalidEvent, Reason
from tidemill_contract.resource.paths import show_path
from tidemill_contract.resource.source import FieldSpec
from tidemill_contract.resource.spec import PipelineSpec

NOW = 1_700_000_000_000
FIELDS: list[dict[str, Any]] = [
    {"name": "ts", "type": "timestamp", "path": "meta.createdAt"},
    {"name": "user_id", "type": "integer", "path": "user.id", "required": True},
    {"name": "login", "type": "string", "path": "user.login"},
    {"name": "plan", "type": "string", "path": "user.account.plan", "default": "free"},
    {"name": "seen", "type": "timestamp", "path": "user.account.seen", "default": "2023-11-14"},
    {"name": "agent", "type": "string", "path": ["headers", "User-Agent", "a.b[c]"]},
    {"name": "sku", "type": "string", "path": "order.items[1].sku"},
    {"name": "first_tag", "type": "string", "path": "tags[0]"},
    {"name": "third_tag", "type": "string", "path": "tags[2]"},
    {"name": "city", "type": "string", "path": "Straße"},
    {"name": "flag", "type": "boolean", "default": False},
    {"name": "x", "type": "number", "default": 1},
]
NAMES = [field["name"] for field in FIELDS]
WHOLE = {
    "meta": {"createdAt": NOW, "id": "1"},
    "user": {"id": 7, "login": "ada", "account": {"plan": "pro", "seen": "2023-11-14T22:13:20Z"}},
    "headers": {"User-Agent": {"a.b[c]": "curl"}, "Accept": ["*"]},
    "order": {"items": [{"sku": "one"}, {"sku": "two"}, {"sku": 3}]},
    "tags": ["a", {"b": 1}, "c", 4],
    "Straße": "Oslo",
    "flag": True,
    "x": 2.5,
}
NESTED = {
    "ts": NOW, "user_id": 7, "login": "ada", "plan": "pro", "seen": NOW, "agent": "curl", "sku": "two",
    "first_tag": "a", "third_tag": "c", "city": "Oslo", "flag": True, "x": 2.5,
}  # fmt: skip
MINIMAL = {"meta": {"createdAt": NOW}, "user": {"id": 7}}
DEFAULTS = dict.fromkeys(NAMES) | {
    "ts": NOW, "user_id": 7, "plan": "free", "seen": 1_699_920_000_000, "flag": False, "x": 1.0,
}  # fmt: skip


def make_decoder(
    fields: list[dict[str, Any]] = FIELDS, *, strict: bool = False, group: str = "login", time: str | None = "ts"
) -> EventDecoder:
    source = {"fields": fields, "strict": strict, "eventTime": {"field": time} if time else {}}
    window = {"type": "tumbling", "size": "1m"}
    aggregation = {
        "name": "a", "groupBy": [group], "window": window, "metrics": [{"name": "n", "function": "count"}],
    }  # fmt: skip
    return EventDecoder(PipelineSpec.model_validate({"source": source, "aggregations": [aggregation]}), exact=True)


DECODER = make_decoder()


def values(event: Any, decoder: EventDecoder = DECODER) -> dict[str, Any]:
    return {name: decoder.values([event], name)[0] for name in decoder.names}


def values_or_error(raw: bytes, decoder: EventDecoder = DECODER) -> Any:
    """Return an event's values or its error. Check that the event is decoded equally alone and in a batch."""
    batch = decoder.decode_all([raw], NOW)
    error = decoder.refusal(raw, NOW)
    if error is not None:
        refused = batch.invalid[0]
        assert (refused.reason, refused.field, refused.detail) == (error.reason, error.field, error.detail)
        return error
    assert not batch.invalid
    alone = values(decoder.decode(raw, NOW), decoder)
    assert values(batch.events[0], decoder) == alone
    assert json.loads(decoder.as_json(batch.events, [raw])[0]) == alone
    return alone


def test_members_are_read_by_their_paths() -> None:
    assert values_or_error(json.dumps(WHOLE).encode()) == NESTED
    assert values_or_error(json.dumps(WHOLE, ensure_ascii=False).encode()) == NESTED


NULLS: list[tuple[str, dict[str, Any]]] = [
    ("all optional members are absent", MINIMAL),
    ("objects on a path are null", {**MINIMAL, "headers": None, "order": None, "tags": None, "flag": None, "x": None}),
    ("objects within them are null", {**MINIMAL, "user": {"id": 7, "account": None}, "headers": {"User-Agent": None}}),
    ("values are null", {**MINIMAL, "user": {"id": 7, "account": {"plan": None, "seen": None}}, "order": {}}),
    ("arrays are empty", {**MINIMAL, "order": {"items": []}, "tags": []}),
    ("arrays are too short", {**MINIMAL, "order": {"items": [{"sku": 1}]}}),
    ("items are null", {**MINIMAL, "order": {"items": [None, None]}, "tags": [None, None, None]}),
]


@pytest.mark.parametrize(("reason", "members"), NULLS, ids=[reason for reason, _ in NULLS])
def test_an_absent_or_null_member_is_null_or_the_default(reason: str, members: dict[str, Any]) -> None:
    assert values_or_error(json.dumps(members).encode()) == DEFAULTS


def test_defaults_apply_only_to_the_events_that_lack_the_member() -> None:
    raws = [json.dumps(each).encode() for each in (MINIMAL, WHOLE, MINIMAL)]
    assert [values(event) for event in DECODER.decode_all(raws, NOW).events] == [DEFAULTS, NESTED, DEFAULTS]


def test_an_array_that_is_too_short_for_a_required_item_is_refused() -> None:
    fields = [
        {"name": "login", "type": "string", "path": "row[2].login", "required": True},
        {"name": "a", "type": "integer", "path": "row[1]"},
        {"name": "b", "type": "integer", "path": "row[3]", "default": 5},
    ]
    decoder = make_decoder(fields, time=None)
    assert values_or_error(b'{"row": [0, 1, {"login": "x"}]}', decoder) == {"login": "x", "a": 1, "b": 5}
    assert values_or_error(b'{"row": [0, null, {"login": "x"}, null]}', decoder) == {"login": "x", "a": None, "b": 5}
    for raw in (b'{"row": [0, 1]}', b'{"row": [0, 1, null]}', b'{"row": [0, 1, {}]}', b'{"row": null}', b"{}"):
        error = values_or_error(raw, decoder)
        assert (error.reason, error.field) == (Reason.MISSING_FIELD, "login")
        assert "the field is read from row[2].login" in error.detail


REFUSED: list[tuple[str, bytes, Reason, str | None, str]] = [
    (
        "a value of another type",
        json.dumps({**MINIMAL, "user": {"id": "x"}}).encode(),
        Reason.MISTYPED, "user_id", 'user_id: expected integer, got string "x"; send a whole number, or declare the'
        " field as string; the field is read from user.id",
    ),
    (
        "a required member is missing",
        json.dumps({**MINIMAL, "user": {"login": "x"}}).encode(),
        Reason.MISSING_FIELD, "user_id", "user_id is missing; send it; the field is read from user.id",
    ),
    (
        "the object of a required member is null",
        json.dumps({**MINIMAL, "user": None}).encode(),
        Reason.MISSING_FIELD, "user_id", "user_id is missing; send it; the field is read from user.id",
    ),
    (
        "no object at a path",
        json.dumps({**MINIMAL, "headers": "none"}).encode(),
        Reason.MISTYPED, "agent", 'headers: expected object, got string "none"; the path of agent leads through it:'
        " correct the path, or the event",
    ),
    (
        "no array at a path",
        json.dumps({**MINIMAL, "tags": {"a": 1}}).encode(),
        Reason.MISTYPED, "first_tag", "tags: expected array, got object; the path of first_tag leads through it:"
        " correct the path, or the event",
    ),
    ("an array", b"[]", Reason.NOT_AN_OBJECT, None, "expected an object, got an array; send each event"),
    ("no JSON", b'{"user": {"id": 1', Reason.NOT_JSON, None, "is not JSON"),
    ("no JSON after a wrong value", b'{"user": {"id": "1"}, "meta": {', Reason.NOT_JSON, None, "is not JSON"),
    (
        "a NUL",
        json.dumps({**MINIMAL, "user": {"id": 1, "login": "a\0"}}).encode(),
        Reason.BAD_STRING, "login", "contains a NUL",
    ),
    (
        "seconds",
        json.dumps({**MINIMAL, "meta": {"createdAt": NOW // 1000}}).encode(),
        Reason.OUT_OF_RANGE, "ts", "ts: 1700000000 means",
    ),
    (
        "a long key",
        json.dumps({**MINIMAL, "user": {"id": 1, "login": "x" * 2000}}).encode(),
        Reason.KEY_TOO_LONG, "login", "2000 bytes",
    ),
    (
        "an envelope",
        json.dumps({"schema": {}, "payload": MINIMAL}).encode(),
        Reason.MISSING_FIELD, "ts", "ts is missing; send it; this is a Kafka Connect envelope",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("reason", "raw", "code", "field", "detail"), REFUSED, ids=[row[0] for row in REFUSED])
def test_a_refusal_names_the_field_and_its_path(
    reason: str, raw: bytes, code: Reason, field: str | None, detail: str
) -> None:
    error = values_or_error(raw)
    assert (error.reason, error.field) == (code, field)
    assert error.detail.startswith(detail)


CONVERTED: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("a whole number with a point", {**MINIMAL, "user": {"id": 7.0}}, {}),
    ("a date alone", {**MINIMAL, "meta": {"createdAt": "2023-11-14"}}, {"ts": 1_699_920_000_000}),
    (
        "more digits than microseconds",
        {**MINIMAL, "meta": {"createdAt": "2023-11-14T22:13:20.1239999Z"}},
        {"ts": NOW + 123},
    ),
    ("digits that would round up", {**MINIMAL, "meta": {"createdAt": "2023-11-14T22:13:19.9999999Z"}}, {"ts": NOW - 1}),
]


@pytest.mark.parametrize(("reason", "members", "changed"), CONVERTED, ids=[row[0] for row in CONVERTED])
def test_values_within_objects_are_converted(reason: str, members: dict[str, Any], changed: dict[str, Any]) -> None:
    assert values_or_error(json.dumps(members).encode()) == {**DEFAULTS, **changed}


def test_a_strict_source_refuses_undeclared_members_of_objects() -> None:
    fields = [
        {"name": "login", "type": "string", "path": "user.login"},
        {"name": "tag", "type": "string", "path": "tags[1]"},
    ]
    decoder = make_decoder(fields, strict=True, time=None)
    assert values_or_error(b'{"user": {"login": "x"}, "tags": [{"any": 1}, "y", 3]}', decoder) == {
        "login": "x",
        "tag": "y",
    }
    for raw, name in ((b'{"user": {"id": 1}}', "user.id"), (b'{"a.b": 1}', "'a.b'")):
        error = values_or_error(raw, decoder)
        assert (error.reason, error.field) == (Reason.UNKNOWN_FIELD, name)
        assert error.detail == f"{name} is not declared; fields are read from user.login, tags[1]"


def test_paths_may_lead_through_an_envelope() -> None:
    fields = [
        {"name": "login", "type": "string", "path": "payload.after.login"},
        {"name": "op", "type": "string", "path": "payload.op"},
    ]
    decoder = make_decoder(fields, time=None)
    raw = b'{"schema": {}, "payload": {"before": null, "after": {"login": "x"}, "op": "c"}}'
    assert values_or_error(raw, decoder) == {"login": "x", "op": "c"}
    assert values_or_error(b'{"schema": {}, "payload": {}}', decoder) == {"login": None, "op": None}


def test_an_envelope_around_optional_members_is_refused() -> None:
    decoder = make_decoder([{"name": "login", "type": "string", "path": "user.login"}], time=None)
    assert values_or_error(b'{"user": null}', decoder) == {"login": None}
    error = values_or_error(b'{"schema": {}, "payload": {"user": {"login": "x"}}}', decoder)
    assert error.reason is Reason.MISSING_FIELD
    assert "Kafka Connect envelope" in error.detail


TWICE: dict[str, dict[str, Any]] = {
    "string": {"type": "string", "default": "free"},
    "integer": {"type": "integer"},
    "number": {"type": "number", "default": 0.5},
    "boolean": {"type": "boolean"},
    "strings": {"type": "strings"},
    "timestamp": {"type": "timestamp", "default": 5},
    "seconds": {"type": "timestamp", "format": "s"},
    "pattern": {"type": "timestamp", "format": "%d.%m.%Y", "zone": "Europe/Berlin", "default": "01.11.2023"},
}
SENT: dict[str, list[Any]] = {
    "string": ["a", None, 1, "\0"],
    "integer": [7, 2.0, None, "7", 2**63],
    "number": [7, 0.5, None, "x"],
    "boolean": [True, None, "true"],
    "strings": [["a", None], [], None, "a", ["\0"]],
    "timestamp": [NOW, "2023-11-14T22:13:20.1239999Z", "2023-11-14", None, 1_700_000_000, "yesterday"],
    "seconds": [1_700_000_000, 1_700_000_000.5, None, "x"],
    "pattern": ["14.11.2023", None, "2023-11-14"],
}


@pytest.mark.parametrize("kind", TWICE)
@pytest.mark.parametrize("paths", [("m", "a.b[0]"), ("a.b[0]", "m")], ids=["flat", "nested"])
@pytest.mark.parametrize("strict", [False, True])
def test_two_fields_of_a_member_have_the_same_value_or_verdict_as_a_single_field(
    kind: str, paths: tuple[str, str], strict: bool
) -> None:
    """Events have every format, are decoded alone and in a batch, and may need conversion."""
    path, other = paths
    single = {"name": "one", "path": path, **TWICE[kind]}
    other_field = {"name": "x", "type": "integer", "path": other}
    with_single = make_decoder([single, other_field], strict=strict, group="one", time=None)
    with_two = make_decoder([single, {**single, "name": "two"}, other_field], strict=strict, group="two", time=None)
    for sent in SENT[kind]:
        event = {"m": sent, "a": {"b": [1]}} if path == "m" else {"m": 1, "a": {"b": [sent]}}
        raw = json.dumps(event).encode()
        alone, result = values_or_error(raw, with_single), values_or_error(raw, with_two)
        if isinstance(alone, InvalidEvent):
            assert (result.reason, result.field, result.detail) == (alone.reason, alone.field, alone.detail)
            continue
        assert result == {**alone, "two": alone["one"]}
        stored = json.loads(with_two.as_json([with_two.decode(raw, NOW)], [raw])[0])
        assert stored == {
            **json.loads(with_single.as_json([with_single.decode(raw, NOW)], [raw])[0]),
            "two": stored["one"],
        }


def test_any_field_of_a_member_may_be_required_or_the_event_time() -> None:
    time = [{"name": name, "type": "timestamp", "path": "at"} for name in ("one", "two")]
    fields = [*time, {"name": "x", "type": "string"}]
    of_time = make_decoder(fields, group="x", time="two")
    assert of_time.refusal(b'{"x": "a"}', NOW) is not None
    decoded = of_time.decode_all([b'{"at": "2023-11-14T22:13:20.000123Z"}'], NOW)
    assert (decoded.micros, values(decoded.events[0], of_time)) == ([123], {"one": NOW, "two": NOW, "x": None})
    needed = [{"name": "one", "type": "string", "path": "m"}, {"name": "m", "type": "string", "required": True}]
    refusal = make_decoder(needed, group="m", time=None).refusal(b"{}", NOW)
    assert refusal is not None
    assert (refusal.reason, refusal.field) == (Reason.MISSING_FIELD, "one")


def test_a_group_key_of_a_member_with_two_fields_has_the_limit_of_length() -> None:
    fields = [{"name": name, "type": "string", "path": "m"} for name in ("one", "two")]
    refusal = values_or_error(json.dumps({"m": "x" * 1025}).encode(), make_decoder(fields, group="two", time=None))
    assert (refusal.reason, refusal.field) == (Reason.KEY_TOO_LONG, "one")


def test_a_strict_source_may_have_json_fields_within_json_fields() -> None:
    fields = [
        {"name": "whole", "type": "json", "path": "a"}, {"name": "part", "type": "json", "path": "a.b"},
        {"name": "again", "type": "json", "path": "a"}, {"name": "x", "type": "string"},
    ]  # fmt: skip
    reading, raw = make_decoder(fields, strict=True, group="x", time=None), b'{"x": "y", "a": {"b": [1]}}'
    assert json.loads(reading.as_json([reading.decode(raw, NOW)], [raw])[0]) == {
        "x": "y", "whole": {"b": [1]}, "part": [1], "again": {"b": [1]},
    }  # fmt: skip


def test_an_event_without_paths_is_decoded_to_a_single_struct() -> None:
    """The struct has the fields in their order, and no object within another."""
    decoder = make_decoder(
        [{"name": "login", "type": "string"}, {"name": "n", "type": "integer", "default": 3}], time=None
    )
    assert decoder.type.__struct_fields__ == ("login", "n")
    assert values_or_error(b'{"login": "x"}', decoder) == {"login": "x", "n": 3}
    assert values_or_error(b'{"login": "x", "n": null}', decoder) == {"login": "x", "n": 3}
    assert values_or_error(b'{"login": "x", "n": 2e2}', decoder) == {"login": "x", "n": 200}
    assert values_or_error(b'{"login": "x", "n": "2"}', decoder).detail.endswith("send the value without quotes")


@pytest.mark.parametrize(
    ("path", "steps", "text"),
    [
        ("a", ("a",), "a"),
        ("User-Agent", ("User-Agent",), "User-Agent"),
        ("a.b[0][12].c", ("a", "b", 0, 12, "c"), "a.b[0][12].c"),
        (["a.b", 0, "c d"], ("a.b", 0, "c d"), "'a.b'[0].c d"),
        (None, ("f",), "f"),
    ],
)
def test_a_path_is_parsed_from_a_text_or_a_list(path: Any, steps: tuple[Any, ...], text: str) -> None:
    field = FieldSpec(name="f", type="string", path=path)
    assert field.steps == steps
    assert show_path(field.steps) == text
    assert FieldSpec.model_validate_json(field.model_dump_json(exclude_none=True)).steps == steps


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 2**64) | st.floats(allow_nan=False) | st.text("aü\0\\", max_size=3),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["sku", "id", "a"]), inner, max_size=3),
    max_leaves=6,
)


@st.composite
def disturbed(draw: st.DrawFn) -> bytes:
    """Return the event WHOLE with a part replaced or deleted."""
    event = json.loads(json.dumps(WHOLE))
    holder, key = event, draw(st.sampled_from(list(event)))
    while isinstance(holder[key], dict | list) and holder[key] and draw(st.booleans()):
        holder = holder[key]
        key = draw(st.sampled_from(list(range(len(holder))) if isinstance(holder, list) else list(holder)))
    if draw(st.booleans()):
        del holder[key]
    else:
        holder[key] = draw(JSON)
    return json.dumps(event).encode()


@settings(max_examples=300)
@given(st.lists(disturbed(), min_size=1, max_size=4))
def test_random_events_get_the_same_values_and_verdicts_alone_and_in_a_batch(raws: list[bytes]) -> None:
    alone = [values_or_error(raw) for raw in raws]
    batch = DECODER.decode_all(raws, NOW)
    for index, expected in enumerate(alone):
        if isinstance(expected, InvalidEvent):
            assert batch.invalid[index].detail == expected.detail
        else:
            assert values(batch.events[index]) == expected
