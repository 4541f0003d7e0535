"""Tests of the generated Avro reader: it reads the same values as fastavro, and raises where fastavro raises."""

from __future__ import annotations

import io
from typing import Any

import fastavro
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avro_records import row_of, schema_of, written
from tidemill_contract.resource.paths import Steps
from tidemill_processor.formats.avro_code import UnsupportedError, WantedMember, generate_reader

INNER = {
    "type": "record", "name": "Inner",
    "fields": [
        {"name": "note", "type": ["null", "string"]},
        {"name": "n", "type": ["null", "int"]},
        {"name": "rest", "type": {"type": "array", "items": ["null", "string", {"type": "map", "values": "long"}]}},
    ],
}  # fmt: skip
OUTER = {
    "type": "record", "name": "Outer", "namespace": "shop",
    "fields": [
        {"name": "id", "type": "long"},
        {"name": "before", "type": ["null", INNER]},
        {"name": "kind", "type": {"type": "enum", "name": "Kind", "symbols": ["a", "b", "c"]}},
        {"name": "ratio", "type": "float"},
        {"name": "amount", "type": ["double", "null"]},
        {"name": "blob", "type": "bytes"},
        {"name": "hash", "type": {"type": "fixed", "name": "Hash", "size": 3}},
        {"name": "paid", "type": "boolean"},
        {"name": "skipped", "type": {"type": "map", "values": {"type": "array", "items": "boolean"}}},
        {"name": "after", "type": ["null", "Inner"]},
        {"name": "text", "type": "string"},
        {"name": "either", "type": ["null", "string", "Kind", "long"]},
    ],
}  # fmt: skip
KINDS: dict[Steps, str] = {
    ("id",): "integer", ("before", "note"): "string", ("kind",): "string", ("ratio",): "number",
    ("amount",): "number", ("paid",): "boolean", ("after", "n"): "integer", ("after", "note"): "string",
    ("text",): "string",
}  # fmt: skip
LONGS = st.integers(-(2**63), 2**63 - 1) | st.integers(-70, 70) | st.integers(-20_000, 20_000)
INTS = st.integers(-(2**31), 2**31 - 1)
TEXTS = st.text(st.characters(exclude_categories=("Cs",)), max_size=90)
INNERS = st.none() | st.fixed_dictionaries(
    {
        "note": st.none() | TEXTS,
        "n": st.none() | INTS,
        "rest": st.lists(st.none() | TEXTS | st.dictionaries(TEXTS, LONGS, max_size=2), max_size=3),
    }
)
VALUES = st.fixed_dictionaries(
    {
        "id": LONGS, "before": INNERS, "kind": st.sampled_from("abc"), "ratio": st.floats(width=32),
        "amount": st.none() | st.floats(), "blob": st.binary(max_size=200), "hash": st.binary(min_size=3, max_size=3),
        "paid": st.booleans(), "skipped": st.dictionaries(TEXTS, st.lists(st.booleans(), max_size=3), max_size=2),
        "after": INNERS, "text": TEXTS, "either": st.none() | LONGS,
    }
)  # fmt: skip


SCHEMA = schema_of(OUTER)
PATHS = list(KINDS)
READ = generate_reader(SCHEMA, [WantedMember(path, KINDS[path]) for path in PATHS], row_of(len(PATHS)))


def at(value: Any, path: Steps) -> Any:
    for step in path:
        value = None if value is None else value[step]
    return value


def general(raw: bytes) -> Any:
    """Return the values that fastavro reads, or None. Skipped texts are not decoded and may not be UTF-8."""
    stream = io.BytesIO(raw[5:])
    try:
        value = fastavro.schemaless_reader(stream, SCHEMA.parsed, None, handle_unicode_errors="replace")
    except Exception:
        return None
    return value if stream.read() == b"" else None


def generated(raw: bytes) -> Any:
    try:
        rows, _ = READ([raw])
    except Exception:
        return None
    return msgspec.structs.astuple(rows[0])


def shown(value: Any) -> str:
    return repr(value)  # Equal for NaN too.


@given(st.lists(VALUES, min_size=1, max_size=4))
def test_the_generated_reader_reads_the_same_values_as_fastavro(values: list[Any]) -> None:
    raws = [written(SCHEMA, value) for value in values]
    rows, _ = READ(raws)
    expected = [general(raw) for raw in raws]
    assert shown([msgspec.structs.astuple(row) for row in rows]) == shown(
        [tuple(at(value, path) for path in PATHS) for value in expected]
    )


@settings(max_examples=400)
@given(VALUES, st.data())
def test_changed_bytes_are_read_like_fastavro_reads_them_or_refused(value: Any, data: st.DataObject) -> None:
    raw = bytearray(written(SCHEMA, value))
    kind = data.draw(st.sampled_from(["cut", "add", "change"]))
    place = data.draw(st.integers(5, len(raw) - 1))
    if kind == "cut":
        del raw[place:]
    elif kind == "add":
        raw[place:place] = data.draw(st.binary(min_size=1, max_size=3))
    else:
        raw[place] = data.draw(st.integers(0, 255))
    values = generated(bytes(raw))
    if values is not None:
        expected = general(bytes(raw))
        assert expected is not None
        assert shown(values) == shown(tuple(at(expected, path) for path in PATHS))


@given(LONGS)
def test_a_long_of_any_length_is_read_as_it_was_written(number: int) -> None:
    schema = schema_of({"type": "record", "name": "R", "fields": [{"name": "n", "type": "long"}]})
    read = generate_reader(schema, [WantedMember(("n",), "integer")], row_of(1))
    assert msgspec.structs.astuple(read([written(schema, {"n": number})])[0][0]) == (number,)


def test_the_operation_of_a_change_is_read_only_if_the_change_has_a_row() -> None:
    fields = [{"name": "before", "type": ["null", INNER]}, {"name": "after", "type": ["null", "Inner"]}]
    fields.append({"name": "op", "type": "string"})
    schema = schema_of({"type": "record", "name": "Envelope", "fields": fields})
    wanted = [WantedMember(("after", "n"), "integer"), None]
    read = generate_reader(schema, wanted, row_of(2), within=("after",), op=("op",))
    row = {"note": None, "n": 3, "rest": []}
    sent = [{"before": None, "after": row, "op": "c"}, {"before": row, "after": None, "op": "d"}]
    rows, ops = read([written(schema, each) for each in sent])
    assert [msgspec.structs.astuple(each) for each in rows] == [(3, None), (None, None)]
    assert ops == ["c", None]


UNSUPPORTED: list[tuple[Any, Steps, str]] = [
    ({"type": "array", "items": "string"}, ("f", 0), "string"),
    ({"type": "map", "values": "string"}, ("f", "k"), "string"),
    (["null", "R"], ("g",), "string"),
    ("bytes", ("f",), "string"),
    ("string", ("f",), "integer"),
]


@pytest.mark.parametrize(("kind", "path", "wanted"), UNSUPPORTED)
def test_generating_a_reader_of_an_unsupported_type_is_an_error(kind: Any, path: Steps, wanted: str) -> None:
    fields = [{"name": "f", "type": kind}, {"name": "g", "type": "string"}]
    schema = schema_of({"type": "record", "name": "R", "fields": fields})
    with pytest.raises(UnsupportedError):
        generate_reader(schema, [WantedMember(path, wanted)], row_of(1))


def test_a_schema_that_would_generate_too_much_code_is_refused() -> None:
    """Each level contains the previous level ten times. Six levels have a million leaves."""
    kind: Any = "int"
    for level in range(6):
        named = {"type": "record", "name": f"L{level}", "fields": [{"name": "f0", "type": kind}]}
        below = f"L{level - 1}" if level else "int"
        named["fields"] += [{"name": f"f{place}", "type": below} for place in range(1, 10)]
        kind = named
    kind["fields"].append({"name": "id", "type": "long"})
    schema = schema_of(kind)
    with pytest.raises(UnsupportedError, match="large"):
        generate_reader(schema, [WantedMember(("id",), "integer")], msgspec.defstruct("Row", [("id", Any, None)]))
