"""Tests of CSV records, and of JSON records with the framing of a schema registry."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill_contract.events.decoder import InvalidEvent, Reason
from tidemill_contract.events.records import RecordDecoder
from tidemill_contract.resource.spec import PipelineSpec

NOW = 1_795_800_000_000
FIELDS: list[dict[str, Any]] = [
    {"name": "shop", "type": "string", "required": True},
    {"name": "amount", "type": "number"},
    {"name": "items", "type": "integer", "default": 1},
    {"name": "paid", "type": "boolean"},
    {"name": "at", "type": "timestamp", "format": "%d.%m.%Y %H:%M"},
]


def make_decoder(record_format: Any, fields: list[dict[str, Any]] = FIELDS, time: str | None = "at") -> RecordDecoder:
    source = {"format": record_format, "fields": fields, "eventTime": {"field": time} if time else {}}
    metrics = [{"name": "n", "function": "count"}]
    aggregations = [{"name": "a", "window": {"type": "tumbling", "size": "1m"}, "metrics": metrics}]
    spec = PipelineSpec.model_validate({"source": source, "aggregations": aggregations})
    return RecordDecoder(PipelineSpec.model_validate_json(spec.model_dump_json(by_alias=True)))


def read(decoder: RecordDecoder, *raws: bytes) -> list[Any]:
    """Return the fields of each record or its error. Check that records are decoded equally alone and in a batch."""
    decoded = decoder.decode_all(list(raws), NOW)
    results: list[Any] = []
    for index, (event, raw) in enumerate(zip(decoded.events, raws, strict=True)):
        alone = decoder.decode_all([raw], NOW)
        error = decoded.invalid.get(index)
        assert (error and error.detail) == (alone.invalid[0].detail if alone.invalid else None)
        if error is not None:
            results.append(error)
            continue
        results.append(json.loads(decoder.as_json([event], [raw])[0]))
        assert results[-1] == json.loads(decoder.as_json(alone.events, [raw])[0])
    return results


CSV = make_decoder("csv")
EMPTY = {"shop": "a", "amount": None, "items": 1, "paid": None, "at": 1_793_527_200_000}
LINES = [
    (b"a,12.5,3,true,01.11.2026 10:00", {"shop": "a", "amount": 12.5, "items": 3, "paid": True}),
    (b"a,,,,01.11.2026 10:00", {}),
    (b"a, 12 , 3 ,false,01.11.2026 10:00\r\n", {"amount": 12.0, "items": 3, "paid": False}),
    (b'"a, ""b""",1e2,2e0,,01.11.2026 10:00\n', {"shop": 'a, "b"', "amount": 100.0, "items": 2}),
    (b'"two\nlines",,,,01.11.2026 10:00', {"shop": "two\nlines"}),
    ("\ufeffØl,,,,01.11.2026 10:00".encode(), {"shop": "Øl"}),
    (b"7,,  ,,01.11.2026 10:00", {"shop": "7"}),
    (b" a ,,,,01.11.2026 10:00", {"shop": " a "}),
]  # fmt: skip


@pytest.mark.parametrize(("line", "expected"), LINES)
def test_the_cells_of_a_line_are_the_values_of_fields_in_order(line: bytes, expected: dict[str, Any]) -> None:
    plain = LINES[0][0]
    assert read(CSV, line) == [EMPTY | expected]
    assert read(CSV, plain, line, plain)[1] == EMPTY | expected


def test_columns_may_have_another_order_than_the_fields_and_may_be_unused() -> None:
    fields = [{**FIELDS[0], "path": "Shop name"}, FIELDS[1]]
    decoder = make_decoder(
        {"type": "csv", "columns": ["id", "amount", "Shop name"], "delimiter": ";"}, fields, time=None
    )
    assert read(decoder, b"7;1,5;a")[0].detail.startswith('amount: expected number, got string "1,5"')
    assert read(decoder, b"7;1.5;a;")[0].reason is Reason.UNREADABLE
    assert read(decoder, b"7;1.5;a", b";;b") == [{"shop": "a", "amount": 1.5}, {"shop": "b", "amount": None}]


def test_several_fields_may_read_a_column_of_decimals() -> None:
    fields = [
        {"name": "shop", "type": "string"},
        {"name": "cents", "type": "decimal", "scale": 2, "path": "price"},
        {"name": "amount", "type": "decimal", "scale": 2, "path": "price", "required": True},
    ]
    decoder = make_decoder({"type": "csv", "columns": ["shop", "price"]}, fields, time=None)
    raws = [b"a,9007199254740.93", b"b,0.001", b"c,"]
    decoded = decoder.decode_all(raws, NOW)
    assert [decoder.values(decoded.events[:1], name) for name in ("cents", "amount")] == [[900_719_925_474_093]] * 2
    assert "0.001 has more than 2 digits after the point" in decoded.invalid[1].detail
    assert decoded.invalid[2].reason is Reason.MISSING_FIELD


BROKEN = [
    (b"a,1", Reason.UNREADABLE, None, "expected 5 cells (shop,amount,items,paid,at), got 2: a,1; correct the line"),
    (b"a,1,2,true,01.11.2026 10:00,x", Reason.UNREADABLE, None, "got 6"),
    (b"", Reason.UNREADABLE, None, "expected one line of CSV, got an empty line"),
    (b"a,,,,01.11.2026 10:00\na,,,,01.11.2026 10:00", Reason.UNREADABLE, None, "got 2 lines"),
    (b'"a,1,2,true,01.11.2026 10:00', Reason.UNREADABLE, None, "is not CSV (unexpected end of data)"),
    (b"\xff,,,,01.11.2026 10:00", Reason.UNREADABLE, None, "is not UTF-8"),
    (b",,,,01.11.2026 10:00", Reason.MISSING_FIELD, "shop", "shop is missing"),
    (b"a,much,,,01.11.2026 10:00", Reason.MISTYPED, "amount", 'amount: expected number, got string "much"'),
    (b"a,,1.5,,01.11.2026 10:00", Reason.MISTYPED, "items", "got number 1.5; send a whole number"),
    (b"a,,,,2026-11-01", Reason.MISTYPED, "at", "expected timestamp as %d.%m.%Y %H:%M"),
    (b"a,,,yes,01.11.2026 10:00", Reason.MISTYPED, "paid", "send true or false"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "reason", "field", "detail"), BROKEN)
def test_an_invalid_line_is_refused_with_the_reason(
    line: bytes, reason: Reason, field: str | None, detail: str
) -> None:
    error = read(CSV, LINES[0][0], line)[1]
    assert isinstance(error, InvalidEvent)
    assert (error.reason, error.field) == (reason, field)
    assert detail in error.detail
    assert len(error.detail) < 400


@given(st.lists(st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), min_size=1), min_size=1))
def test_any_text_that_is_written_as_csv_is_read_unchanged(texts: list[str]) -> None:
    decoder = make_decoder("csv", [{"name": "text", "type": "string"}], time=None)
    raws = []
    for text in texts:
        line = io.StringIO()
        csv.writer(line).writerow([text])
        raws.append(line.getvalue().encode())
    assert [event["text"] for event in read(decoder, *raws)] == texts


def test_json_with_the_framing_of_a_registry_is_read_without_a_request_to_it() -> None:
    decoder = make_decoder({"type": "jsonSchema", "envelope": "connect"}, FIELDS[:2], time=None)
    plain = b'{"payload": {"shop": "a"}}'
    good, unframed, short, wrong = read(decoder, b"\0\0\0\0\7" + plain, plain, b"\0\0\0", b"\0\0\0\0\x08[]")
    assert good == {"shop": "a", "amount": None}
    assert (unframed.reason, short.reason, wrong.reason) == (
        Reason.UNREADABLE, Reason.UNREADABLE, Reason.NOT_AN_OBJECT,
    )  # fmt: skip
    assert "got what looks like JSON, {" in unframed.detail
    assert read(decoder, b"\0\0\0\0\7" + plain, b"\0\0\0\0\x08" + plain) == [good, good]
