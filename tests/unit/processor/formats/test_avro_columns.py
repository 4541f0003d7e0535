"""Tests of the Avro reader for batches: it reads the same values as fastavro."""

from __future__ import annotations

import io
from decimal import Decimal
from typing import Any

import fastavro
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avro_records import FRAME, row_of, schema_of, written
from tidemill_contract.resource.paths import Steps
from tidemill_processor.formats.avro_code import UnsupportedError, WantedMember, generate_reader
from tidemill_processor.formats.avro_columns import columns_reader

MONEY = {"logicalType": "decimal", "precision": 12, "scale": 2}
INNER = {
    "type": "record", "name": "Inner",
    "fields": [
        {"name": "note", "type": ["null", "string"]},
        {"name": "n", "type": ["null", "int"]},
        {"name": "fee", "type": ["null", {"type": "bytes", **MONEY}]},
    ],
}  # fmt: skip
OUTER = {
    "type": "record", "name": "Outer",
    "fields": [
        {"name": "id", "type": "long"},
        {"name": "before", "type": ["null", INNER]},
        {"name": "kind", "type": {"type": "enum", "name": "Kind", "symbols": ["a", "b", "c"]}},
        {"name": "other", "type": "Kind"},
        {"name": "ratio", "type": "float"},
        {"name": "blob", "type": "bytes"},
        {"name": "day", "type": "int"},
        {"name": "amount", "type": ["double", "null"]},
        {"name": "price", "type": {"type": "fixed", "name": "Price", "size": 6, **MONEY}},
        {"name": "paid", "type": "boolean"},
        {"name": "open", "type": "boolean"},
        {"name": "after", "type": ["null", "Inner"]},
        {"name": "text", "type": "string"},
        {"name": "either", "type": ["null", "string", "Kind", "long"]},
    ],
}  # fmt: skip
KINDS: dict[Steps, str] = {
    ("id",): "integer", ("before", "note"): "string", ("kind",): "string", ("ratio",): "number",
    ("amount",): "number", ("paid",): "boolean", ("after", "n"): "number", ("after", "note"): "string",
    ("text",): "string", ("price",): "decimal", ("after", "fee"): "decimal",
}  # fmt: skip
SCALE = 3
LONGS = st.integers(-(2**63), 2**63 - 1) | st.integers(-70, 70) | st.integers(-20_000, 20_000)
TEXTS = st.text(st.characters(exclude_categories=("Cs",)), max_size=90)
CENTS = st.integers(-(10**12) + 1, 10**12 - 1).map(lambda cents: Decimal(cents).scaleb(-2))
INNERS = st.none() | st.fixed_dictionaries(
    {"note": st.none() | TEXTS, "n": st.none() | st.integers(-(2**31), 2**31 - 1), "fee": st.none() | CENTS}
)
VALUES = st.fixed_dictionaries(
    {
        "id": LONGS, "before": INNERS, "kind": st.sampled_from("abc"), "other": st.sampled_from("abc"),
        "ratio": st.floats(width=32), "blob": st.binary(max_size=200), "day": st.integers(-700_000, 2_000_000),
        "amount": st.none() | st.floats(), "price": CENTS, "paid": st.booleans(), "open": st.booleans(),
        "after": INNERS, "text": TEXTS, "either": st.none() | LONGS,
    }
)  # fmt: skip


SCHEMA = schema_of(OUTER)
PATHS = list(KINDS)
WANTED = [WantedMember(path, KINDS[path], SCALE) for path in PATHS]
READ = columns_reader(SCHEMA, WANTED, row_of(len(PATHS)))
ONE_BY_ONE = generate_reader(SCHEMA, WANTED, row_of(len(PATHS)))


def at(value: Any, path: Steps) -> Any:
    for step in path:
        value = None if value is None else value[step]
    if isinstance(value, Decimal):
        return int(value.scaleb(SCALE))
    return float(value) if value is not None and KINDS[path] == "number" else value


def general(raw: bytes) -> str | None:
    """Return the values that fastavro reads, or None. Skipped texts are not decoded and may not be UTF-8."""
    stream = io.BytesIO(raw[5:])
    try:
        value = fastavro.schemaless_reader(stream, SCHEMA.parsed, None, handle_unicode_errors="replace")
    except Exception:
        return None
    return repr(tuple(at(value, path) for path in PATHS)) if stream.read() == b"" else None


def shown(rows: list[Any]) -> list[str]:
    return [repr(msgspec.structs.astuple(row)) for row in rows]  # Equal for NaN too.


def accepted(read: Any, raws: list[bytes]) -> list[str] | None:
    try:
        return shown(read(raws)[0])
    except Exception:
        return None


@given(st.lists(VALUES, min_size=1, max_size=6))
def test_the_batch_reader_reads_the_same_values_as_fastavro(values: list[Any]) -> None:
    raws = [written(SCHEMA, value) for value in values]
    assert shown(READ(raws)[0]) == shown(ONE_BY_ONE(raws)[0]) == [general(raw) for raw in raws]


@settings(max_examples=200)
@given(st.lists(VALUES, min_size=1, max_size=4), st.data())
def test_changed_bytes_are_read_like_fastavro_reads_them_or_refused(values: list[Any], data: st.DataObject) -> None:
    """A change may make a record run into the next record."""
    raws = [bytearray(written(SCHEMA, value)) for value in values]
    for raw in data.draw(st.lists(st.sampled_from(raws), min_size=1, max_size=2)):
        kind = data.draw(st.sampled_from(["cut", "add", "change"]))
        place = data.draw(st.integers(5, max(5, len(raw) - 1)))
        if kind == "cut":
            del raw[place:]
        elif kind == "add":
            raw[place:place] = data.draw(st.binary(min_size=1, max_size=12))
        else:
            raw[place : place + 1] = bytes([data.draw(st.integers(0, 255))])
    broken = list(map(bytes, raws))
    for rows in (accepted(READ, broken), accepted(ONE_BY_ONE, broken)):
        assert rows in (None, [general(raw) for raw in broken])


@given(st.lists(LONGS, min_size=1, max_size=9))
def test_a_long_of_any_length_is_read_as_it_was_written(numbers: list[int]) -> None:
    schema = schema_of({"type": "record", "name": "R", "fields": [{"name": "n", "type": "long"}]})
    read = columns_reader(schema, [WantedMember(("n",), "integer")], row_of(1))
    rows, _ = read([written(schema, {"n": number}) for number in numbers])
    assert [msgspec.structs.astuple(row) for row in rows] == [(number,) for number in numbers]


@pytest.mark.parametrize("number", ["\x80" * 9 + "\x02", "\x80" * 10 + "\x01", "\x80" * 3])
def test_a_number_of_more_than_64_bits_is_refused(number: str) -> None:
    schema = schema_of({"type": "record", "name": "R", "fields": [{"name": "n", "type": "long"}]})
    read = columns_reader(schema, [WantedMember(("n",), "integer")], row_of(1))
    with pytest.raises(Exception):  # noqa: B017 - after any error, the caller reads the records separately
        read([FRAME + number.encode("latin-1"), FRAME + b"\2"])


def test_the_operations_of_changes_are_read_as_by_the_generated_reader() -> None:
    fields = [{"name": "before", "type": ["null", INNER]}, {"name": "after", "type": ["null", "Inner"]}]
    fields.append({"name": "op", "type": "string"})
    schema = schema_of({"type": "record", "name": "Envelope", "fields": fields})
    row = {"note": None, "n": 3, "fee": None}
    changes = [{"before": None, "after": row, "op": "c"}, {"before": row, "after": None, "op": "d"}]
    for sent in (changes, changes[:1], changes[1:]):
        raws = [written(schema, each) for each in sent]
        for wanted in ([WantedMember(("after", "n"), "integer"), None], [None, None]):
            rows, ops = columns_reader(schema, wanted, row_of(2), within=("after",), op=("op",))(raws)
            assert (rows, ops) == generate_reader(schema, wanted, type(rows[0]), within=("after",), op=("op",))(raws)


@pytest.mark.parametrize(
    ("kind", "path", "wanted"),
    [
        ({"type": "array", "items": "string"}, ("g",), "string"),
        ({"type": "map", "values": "string"}, ("f", "k"), "string"),
        (["null", "R"], ("g",), "string"),
        ("bytes", ("f",), "string"),
        ("string", ("f",), "integer"),
        ({"type": "bytes", **MONEY, "scale": 4}, ("f",), "decimal"),
    ],
)
def test_creating_a_reader_of_an_unsupported_type_is_an_error(kind: Any, path: Steps, wanted: str) -> None:
    fields = [{"name": "f", "type": kind}, {"name": "g", "type": "string"}]
    schema = schema_of({"type": "record", "name": "R", "fields": fields})
    with pytest.raises(UnsupportedError):
        columns_reader(schema, [WantedMember(path, wanted, SCALE)], row_of(1))
