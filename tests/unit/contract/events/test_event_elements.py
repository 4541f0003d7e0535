"""Tests of exploded arrays: each element becomes an event with the fields of its record."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidemill_contract.events.elements import ELEMENTS_ATTRIBUTE, MAX_ELEMENTS, ElementDecoder, Origins
from tidemill_contract.events.invalid_events import InvalidEvent
from tidemill_contract.events.records import RecordDecoder
from tidemill_contract.resource.paths import read_path, show_path
from tidemill_contract.resource.source import FieldSpec
from tidemill_contract.resource.spec import PipelineSpec

NOW = 1_700_000_000_000
ITEMS: list[dict[str, Any]] = [
    {"name": "id", "type": "integer"},
    {"name": "ts", "type": "timestamp", "required": True},
    {"name": "sku", "type": "string", "path": "order.items[].sku"},
    {"name": "price", "type": "number", "path": "order.items[].price.amount", "default": 1},
    {"name": "color", "type": "string", "path": "order.items[].colors[0]"},
]
TAGS: list[dict[str, Any]] = [{"name": "id", "type": "integer"}, {"name": "tag", "type": "string", "path": "tags[]"}]
POINTS: list[dict[str, Any]] = [
    {"name": "host", "type": "string"},
    {"name": "at", "type": "timestamp", "path": "points[].at"},
    {"name": "value", "type": "integer", "path": "points[].value", "required": True},
]


class Pipeline:
    """The decoders of a pipeline for records and elements, and events as dictionaries."""

    def __init__(self, fields: list[dict[str, Any]], *, time: str | None = None, **rest: Any) -> None:
        strict, key = rest.pop("strict", False), {"groupBy": [rest.pop("group")]} if "group" in rest else {}
        aggregation = {
            "name": "a", "window": {"type": "tumbling", "size": "1m"}, "metrics": [{"name": "n", "function": "count"}],
            **key,
        }  # fmt: skip
        source = {"fields": fields, "strict": strict, "eventTime": {"field": time} if time else {}}
        spec = PipelineSpec.model_validate({"source": source, "aggregations": [aggregation], **rest})
        self.records, self.elements = RecordDecoder(spec, exact=True), ElementDecoder(spec, exact=True)
        self.outside = [f.name for f in spec.source.fields if f.array is None and f.type != "json"]
        self.inside = [f.name for f in spec.source.fields if f.array is not None and f.type != "json"]

    def read(self, *records: Any) -> list[Any]:
        """Return the error of each record, or a list with a dictionary or an error for each element."""
        raws = [each if isinstance(each, bytes) else json.dumps(each).encode() for each in records]
        decoded = self.records.decode_all(raws, NOW)
        valid_indexes = [index for index, event in enumerate(decoded.events) if event is not None]
        valid = [decoded.events[index] for index in valid_indexes]
        arrays = self.records.values(valid, ELEMENTS_ATTRIBUTE)
        elements = self.elements.decode(arrays, NOW)
        assert elements.counts == [len(array or ()) for array in arrays]
        answers: list[Any] = [decoded.invalid.get(index, []) for index in range(len(raws))]
        record_values = {
            name: dict(zip(valid_indexes, self.records.values(valid, name), strict=True)) for name in self.outside
        }
        record_indexes = [
            record for record, count in zip(valid_indexes, elements.counts, strict=True) for _ in range(count)
        ]
        for index, record in enumerate(record_indexes):
            event = elements.events[index]
            assert (event is None) == (index in elements.invalid)
            values = {name: values[record] for name, values in record_values.items()}
            values |= {name: self.elements.values([event], name)[0] for name in self.inside if event is not None}
            answers[record].append(elements.invalid.get(index, values))
        return answers


def refusals(answers: list[Any]) -> list[str]:
    return [str(each) for each in answers if isinstance(each, InvalidEvent)]


def test_each_element_is_an_event_with_the_fields_of_its_record() -> None:
    """Members that an element lacks are null or the default. An element may be null."""
    items = [{"sku": "a", "price": {"amount": 2}, "colors": ["red", "blue"]}, {}, None]
    pipeline = Pipeline(ITEMS, time="ts")
    first, second = pipeline.read(
        {"id": 7, "ts": NOW, "order": {"items": items}}, {"ts": NOW, "order": {"items": [{}]}}
    )
    empty = {"id": 7, "ts": NOW, "sku": None, "price": 1.0, "color": None}
    assert first == [empty | {"sku": "a", "price": 2.0, "color": "red"}, empty, empty]
    assert second == [empty | {"id": None}]


def test_elements_that_are_single_values_are_events() -> None:
    assert Pipeline(TAGS).read({"id": 1, "tags": ["a", None, "b"]}) == [
        [{"id": 1, "tag": "a"}, {"id": 1, "tag": None}, {"id": 1, "tag": "b"}]
    ]


def test_decimals_in_elements_are_exact() -> None:
    """Decimals are members of elements, or the elements. A decimal that does not fit is refused alone."""
    cents = {"name": "cents", "type": "decimal", "scale": 2}
    inside, itself = Pipeline([cents | {"path": "items[].cents"}]), Pipeline([cents | {"path": "cents[]"}])
    for pipeline, record in (
        (inside, b'{"items": [{"cents": 0.07}, {"cents": "9007199254740993.11"}, {"cents": 0.001}, {}]}'),
        (itself, b'{"cents": [0.07, "9007199254740993.11", 0.001, null]}'),
    ):
        (answers,) = pipeline.read(record)
        assert answers[:2] + answers[3:] == [{"cents": 7}, {"cents": 900719925474099311}, {"cents": None}]
        assert "0.001 has more than 2 digits after the point; round the number before sending" in str(answers[2])


@pytest.mark.parametrize("path", ["tags[]", "tags[].name"])
@pytest.mark.parametrize("required", [False, True])
def test_two_fields_may_read_the_same_part_of_elements(path: str, required: bool) -> None:
    first = {"name": "one", "type": "string", "path": path}
    pipeline = Pipeline([{"name": "id", "type": "integer"}, first, {**first, "name": "two", "required": required}])
    texts = ["a", None, 5]
    events = pipeline.read({"id": 1, "tags": [text if path == "tags[]" else {"name": text} for text in texts]})[0]
    assert events[0] == {"id": 1, "one": "a", "two": "a"}
    assert isinstance(events[1], InvalidEvent) if required else events[1] == {"id": 1, "one": None, "two": None}
    assert isinstance(events[2], InvalidEvent)


@pytest.mark.parametrize("order", [{}, {"items": None}, {"items": []}, None, "absent"])
def test_a_record_without_elements_gives_no_event(order: Any) -> None:
    record = {"ts": NOW} if order == "absent" else {"ts": NOW, "order": order}
    assert Pipeline(ITEMS, time="ts").read(record) == [[]]


def test_a_required_field_of_elements_requires_the_array_but_no_element() -> None:
    pipeline = Pipeline(POINTS, time="at")
    missing, empty = pipeline.read({"host": "a"}, {"points": []})
    assert (str(missing), empty) == (
        "missing_field: points is missing or null, but its elements need the field value; send the array",
        [],
    )


REFUSED = [
    ({"id": "x", "ts": NOW, "order": {"items": [{}]}}, 'mistyped: id: expected integer, got string "x"; send a whole'),
    ({"ts": NOW, "order": {"items": 5}}, "mistyped: order.items: expected array, got number 5; the path of sku leads"),
    ({"ts": NOW, "order": {"items": {}}}, "mistyped: order.items: expected array, got object; the path of sku leads"),
    ({"ts": NOW, "order": [1]}, "mistyped: order: expected object, got array; the path of sku leads through it"),
    ({"order": {"items": [{}]}}, "missing_field: ts is missing; send it"),
    (b"[]", "not_an_object: expected an object, got an array; send each event in a separate record"),
    (b'{"ts": 1', "not_json: is not JSON"),
]


@pytest.mark.parametrize(("record", "expected"), REFUSED)
def test_an_invalid_record_is_refused_without_decoding_its_elements(record: Any, expected: str) -> None:
    (error,) = Pipeline(ITEMS, time="ts").read(record)
    assert str(error).startswith(expected)


def test_a_record_that_looks_like_an_envelope_is_accepted_if_it_has_the_array() -> None:
    (events,) = Pipeline(TAGS).read({"op": "c", "before": None, "tags": ["a"]})
    assert [event["tag"] for event in events] == ["a"]
    (error,) = Pipeline(TAGS).read({"op": "c", "before": None, "after": {"tags": ["a"]}})
    assert "this is a Debezium change event" in str(error)


def test_an_invalid_element_is_refused_and_the_other_elements_are_events() -> None:
    items = [{"sku": "a"}, {"sku": 7}, 5, [1], {"price": 3}, {"sku": "b\0"}, {"sku": "z"}]
    (answers,) = Pipeline(ITEMS, time="ts").read({"ts": NOW, "order": {"items": items}})
    assert [answer["sku"] for answer in answers if isinstance(answer, dict)] == ["a", "z"]
    assert refusals(answers) == [
        "mistyped: element 1 of order.items: sku: expected string, got number 7; send the value in quotes, or declare"
        " the field as number",
        "mistyped: order.items[2]: expected object, got number 5; the path of sku leads through it: correct the path,"
        " or the event",
        "mistyped: order.items[3]: expected object, got array; the path of sku leads through it: correct the path,"
        " or the event",
        "mistyped: element 4 of order.items: price: expected object, got number 3; the path of price leads through it:"
        " correct the path, or the event",
        "bad_string: element 5 of order.items: contains a NUL character, which Postgres cannot store",
    ]


def test_each_element_may_have_an_event_time() -> None:
    """Every notation of times is read, and each time is compared with the clock."""
    points = [
        {"at": NOW, "value": 1}, {"at": "2023-11-14T22:13:20.1239Z", "value": 2.0}, {"at": NOW + 10**8, "value": 3},
        {"value": 4}, {"at": NOW},
    ]  # fmt: skip
    (answers,) = Pipeline(POINTS, time="at").read({"host": "a", "points": points})
    assert answers[:2] == [{"host": "a", "at": NOW, "value": 1}, {"host": "a", "at": NOW + 123, "value": 2}]
    assert [text.split(" of points: ")[0] for text in refusals(answers)] == [
        "too_far_in_the_future: element 2", "missing_field: element 3", "missing_field: element 4",
    ]  # fmt: skip


def test_strict_refuses_undeclared_members_of_records_and_of_elements() -> None:
    pipeline = Pipeline(ITEMS, time="ts", strict=True)
    fine, elements, record = pipeline.read(
        {"ts": NOW, "order": {"items": [{"sku": "a"}]}},
        {"ts": NOW, "order": {"items": [{"sku": "a", "size": 3}, {"sku": "b"}]}},
        {"ts": NOW, "order": {"items": [], "note": ""}},
    )
    assert len(fine) == 1
    assert [isinstance(each, dict) for each in elements] == [False, True]
    assert refusals(elements)[0].startswith("unknown_field: element 0 of order.items: size is not declared")
    assert str(record).startswith("unknown_field: order.note is not declared; fields are read from id, ts, order.items")


def test_an_array_with_too_many_elements_is_refused() -> None:
    """The record becomes a single dead letter."""
    many, most = ({"id": 1, "tags": ["a"] * number} for number in (MAX_ELEMENTS + 1, MAX_ELEMENTS))
    refused, allowed = Pipeline(TAGS).read(many, most)
    assert str(refused) == "too_large: tags has 10001 elements; at most 10000 are allowed: send several records"
    assert len(allowed) == MAX_ELEMENTS


def test_the_stored_bytes_of_a_record_are_bounded() -> None:
    """Each stored event repeats the fields of its record, and long fields of many elements are too large."""
    record = {"note": "x" * 300_000, "tags": ["a"] * 1_000}
    fields = [{"name": "note", "type": "string"}, *TAGS]
    (counted,), (refused,) = (Pipeline(fields, events={"store": keep}).read(record) for keep in (False, True))
    assert len(counted) == 1_000
    assert str(refused).startswith("too_large: tags has 1000 elements, and each element would be stored with")
    small = {"note": "x", "tags": ["a"] * MAX_ELEMENTS}
    (allowed,) = Pipeline(fields, events={"store": True}).read(json.dumps(small, indent=8).encode())
    assert len(allowed) == MAX_ELEMENTS


def test_json_of_elements_is_stored_unchanged() -> None:
    fields = [*TAGS[:1], {"name": "whole", "type": "json", "path": "items[]"},
              {"name": "part", "type": "json", "path": "items[].part"},
              {"name": "sku", "type": "string", "path": "items[].sku"}]  # fmt: skip
    pipeline = Pipeline(fields, events={"store": True})
    raw = b'{"id": 1, "items": [ {"sku": "a", "part": {"n": 1.00}} , {}]}'
    decoded = pipeline.records.decode_all([raw], NOW)
    elements = pipeline.elements.decode(pipeline.records.values(decoded.events, ELEMENTS_ATTRIBUTE), NOW)
    assert not elements.invalid
    assert pipeline.elements.as_json(elements.events, elements.raws) == [
        '{"sku":"a","whole":{"sku": "a", "part": {"n": 1.00}},"part":{"n": 1.00}}',
        '{"sku":null,"whole":{},"part":null}',
    ]
    assert pipeline.records.as_json(decoded.events, [raw]) == ['{"id":1}']


def test_the_text_of_an_element_is_found_by_its_index() -> None:
    raw = b'{"a": {"b": [1, {"c": [ 2 ]}, "x"]}}'
    assert [Origins([0, 3], ("a", "b"), bytes).text(raw, place) for place in range(3)] == [
        b"1",
        b'{"c": [ 2 ]}',
        b'"x"',
    ]


@pytest.mark.parametrize(
    ("path", "steps", "text"),
    [
        ("tags[]", ("tags", ()), "tags[]"),
        ("a.b[].c[0].d", ("a", "b", (), "c", 0, "d"), "a.b[].c[0].d"),
        (["x.y", [], "z"], ("x.y", (), "z"), "'x.y'[].z"),
    ],
)
def test_a_path_through_each_element_is_parsed_and_formatted(path: Any, steps: Any, text: str) -> None:
    field = FieldSpec(name="f", type="string", path=path)
    assert (field.steps, show_path(field.steps), field.array) == (steps, text, steps[: steps.index(())])
    assert FieldSpec.model_validate_json(field.model_dump_json(exclude_none=True)).steps == steps


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("a[].b[]", "has [] twice, but only one array can be exploded"),
        ("a[][0]", "has an index after []: arrays in an exploded array cannot be read"),
        ("[].a", "is not a path of members"),
        ([[], "a"], "does not begin with a member's name"),
    ],
)
def test_an_invalid_path_is_refused_with_the_reason(path: Any, message: str) -> None:
    with pytest.raises(ValueError) as error:
        read_path(path)
    assert str(error.value).startswith(message)


ELEMENT = st.one_of(
    st.none(), st.integers(-3, 3), st.just([]),
    st.fixed_dictionaries({}, optional={
        "sku": st.one_of(st.none(), st.sampled_from(["a", "ü", "\0", "x" * 1100]), st.integers(0, 1)),
        "price": st.one_of(st.none(), st.integers(0, 2), st.fixed_dictionaries({}, optional={"amount": st.integers()})),
        "colors": st.one_of(st.none(), st.lists(st.sampled_from(["red", None]), max_size=2)),
        "at": st.sampled_from([NOW, "2023-11-14", NOW * 2]),
    }),
)  # fmt: skip
RECORD = st.fixed_dictionaries(
    {"ts": st.sampled_from([NOW, NOW, NOW, None])},
    optional={
        "id": st.one_of(st.none(), st.integers(0, 3), st.just("x")),
        "order": st.one_of(
            st.none(),
            st.fixed_dictionaries({}, optional={"items": st.one_of(st.none(), st.lists(ELEMENT, max_size=4))}),
        ),
    },
)


@settings(max_examples=200, deadline=None)
@given(st.lists(RECORD, max_size=6))
def test_random_elements_give_the_same_events_as_records_with_one_element(records: list[dict[str, Any]]) -> None:
    """The model decodes each element as a record with the other members of its record."""
    fields = [*ITEMS, {"name": "at", "type": "timestamp", "path": "order.items[].at"}]
    flat = [
        {**field, "path": f"order.{field['path'].split('[].')[1]}"} if "path" in field else field for field in fields
    ]
    pipeline, alone = Pipeline(fields, time="ts", group="sku"), RecordDecoder(_spec(flat), exact=True)
    for record, answer in zip(records, pipeline.read(*records), strict=True):
        outer = {name: value for name, value in record.items() if name != "order"}
        if isinstance(answer, InvalidEvent):
            refusal = alone.refusal(json.dumps(outer).encode(), NOW)
            assert (refusal and str(refusal)) == str(answer)
            continue
        elements = (record.get("order") or {}).get("items") or []
        assert len(elements) == len(answer)
        for element, event in zip(elements, answer, strict=True):
            raw = json.dumps({**outer, "order": element}).encode()
            decoded = alone.decode_all([raw], NOW)
            if decoded.invalid:
                assert isinstance(event, InvalidEvent)
                if event.detail.startswith("element"):
                    expected = decoded.invalid[0]
                    assert (event.reason, event.field) == (expected.reason, expected.field)
                continue
            names = [field["name"] for field in fields]
            assert event == {name: alone.values(decoded.events, name)[0] for name in names}


def _spec(fields: list[dict[str, Any]]) -> PipelineSpec:
    aggregation = {
        "name": "a", "groupBy": ["sku"], "window": {"type": "tumbling", "size": "1m"},
        "metrics": [{"name": "n", "function": "count"}],
    }  # fmt: skip
    source = {"fields": fields, "eventTime": {"field": "ts"}}
    return PipelineSpec.model_validate({"source": source, "aggregations": [aggregation]})
