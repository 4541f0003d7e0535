"""Tests of the details of dead letters: the value, the expected type, and the remedy."""

from __future__ import annotations

import gzip
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill_contract.events.decoder import EventDecoder, InvalidEvent, Reason
from tidemill_contract.events.members import whole_number
from tidemill_contract.resource.spec import PipelineSpec

NOW = 1_795_800_000_000


def make_decoder(*, strict: bool = False, required: bool = True) -> EventDecoder:
    source = {
        "fields": [
            {"name": "ts", "type": "timestamp"},
            {"name": "k", "type": "string", "required": required},
            {"name": "amount", "type": "number"},
            {"name": "count", "type": "integer"},
            {"name": "paid", "type": "boolean"},
        ],
        "strict": strict,
        **({"eventTime": {"field": "ts"}} if required else {}),
    }
    metrics = [{"name": "n", "function": "count"}]
    aggregation = {"name": "a", "window": {"type": "tumbling", "size": "1m"}, "metrics": metrics}
    return EventDecoder(PipelineSpec.model_validate({"source": source, "aggregations": [aggregation]}))


DECODER, STRICT, OPTIONAL = make_decoder(), make_decoder(strict=True), make_decoder(required=False)


def event(**members: Any) -> bytes:
    return json.dumps({"ts": NOW, "k": "a", **members}, ensure_ascii=False).encode()


CHANGE = {"before": None, "after": {"k": "a"}, "op": "c", "source": {"table": "t"}}
ENVELOPE = {"schema": {"type": "struct"}, "payload": {"k": "a"}}
DETAILS = [
    (event(amount="12,5"), Reason.MISTYPED, "amount", 'amount: expected number, got string "12,5"; send a number'),
    (event(amount="12.5"), Reason.MISTYPED, "amount", 'got string "12.5"; send the value without quotes'),
    (event(amount="lots"), Reason.MISTYPED, "amount", "send a number, or declare the field as string"),
    (event(amount=True), Reason.MISTYPED, "amount", "expected number, got boolean true; send a number"),
    (event(amount=[1]), Reason.MISTYPED, "amount", "expected number, got array; send one value"),
    (event(amount={"eur": 1}), Reason.MISTYPED, "amount", "expected number, got object; send one value"),
    (event(count=200.5), Reason.MISTYPED, "count", "got number 200.5; send a whole number, or declare"),
    (event(count=2**63), Reason.OUT_OF_RANGE, "count", "count: 9223372036854775808 does not fit 64 bits"),
    (b'{"ts": 1795800000000, "k": "a", "count": 1e300}', Reason.OUT_OF_RANGE, "count", "count: 1e300 does not fit"),
    (b'{"ts": 1795800000000, "k": "a", "amount": 1e999}', Reason.OUT_OF_RANGE, "amount", "amount: 1e999 does not fit"),
    (event(k=7), Reason.MISTYPED, "k", "expected string, got number 7; send the value in quotes, or"),
    (event(paid="yes"), Reason.MISTYPED, "paid", 'got string "yes"; send true or false'),
    (event(paid="true"), Reason.MISTYPED, "paid", 'got string "true"; send the value without quotes'),
    (b'{"country": "\\ud83d"}', Reason.NOT_JSON, None, "contains half a surrogate pair (\\ud83d); send both halves"),
    (event(k=None), Reason.MISSING_FIELD, "k", "k is null, but required; send a value"),
    (b'{"ts": 1795800000000}', Reason.MISSING_FIELD, "k", "k is missing; send it"),
    (event(amount="x" * 500), Reason.MISTYPED, "amount", "x…; send"),
    (b"[1]", Reason.NOT_AN_OBJECT, None, "got an array; send each event in a separate record"),
    (json.dumps('{"k": "a"}').encode(), Reason.NOT_AN_OBJECT, None, "encoded twice; encode the event once"),
    (b"12", Reason.NOT_AN_OBJECT, None, "expected an object, got 12"),
    (b"", Reason.NOT_JSON, None, "the record is empty"),
    (b"hello", Reason.NOT_JSON, None, "is not JSON; send one JSON object per record"),
    (event() + b"\n" + event(), Reason.NOT_JSON, None, "send one JSON object per record"),
    (b'{"ts": 1, "amount": NaN}', Reason.NOT_JSON, None, "no NaN and no Infinity; send null"),
    (b'{"ts": 1, "amount": -Infinity}', Reason.NOT_JSON, None, "no NaN and no Infinity; send null"),
    (b"\x00\x00\x00\x00\x2a" + event(), Reason.NOT_JSON, None, "(schema 42, then JSON); send plain JSON"),
    (b"\x00\x00\x00\x00\x07\x02a\x04", Reason.NOT_JSON, None, "(schema 7, then Avro or Protobuf); send plain JSON"),
    (gzip.compress(event(), mtime=0), Reason.NOT_JSON, None, "is compressed with gzip"),
    (b"Obj\x01\x04", Reason.NOT_JSON, None, "is an Avro file"),
    (b"\xef\xbb\xbf" + event(), Reason.NOT_JSON, None, "byte order mark; write UTF-8 without a byte order mark"),
    (event().decode().encode("utf-16"), Reason.NOT_JSON, None, "is UTF-16; write UTF-8"),
    (b"\x0a\x03abc\x10\x01", Reason.NOT_JSON, None, "is binary (such as Avro, Protobuf"),
    (json.dumps(ENVELOPE).encode(), Reason.MISSING_FIELD, None, "(schema, payload): set source.format.envelope to"),
    (json.dumps(CHANGE).encode(), Reason.MISSING_FIELD, None, "(before, after, op): set source.format.envelope"),
]  # fmt: skip


@pytest.mark.parametrize(("raw", "reason", "field", "detail"), DETAILS)
def test_the_detail_of_a_dead_letter_names_the_value_and_the_remedy(
    raw: bytes, reason: Reason, field: str | None, detail: str
) -> None:
    with pytest.raises(InvalidEvent) as caught:
        DECODER.decode(raw, NOW)
    assert caught.value.reason == reason
    assert field in (None, caught.value.field)
    assert detail in caught.value.detail
    assert len(caught.value.detail) < 400
    batch = DECODER.decode_batch([event(), raw], NOW)[1]
    assert {index: str(error) for index, error in batch.items()} == {1: str(caught.value)}


@pytest.mark.parametrize("raw", [json.dumps(ENVELOPE).encode(), json.dumps(CHANGE).encode()])
def test_an_envelope_is_refused_even_if_no_field_is_required(raw: bytes) -> None:
    """Otherwise the envelope would count as an event without values."""
    for errors in (OPTIONAL.decode_batch([raw], NOW)[1], OPTIONAL.decode_batch([b'{"k": "a"}', raw], NOW)[1]):
        assert [error.reason for error in errors.values()] == [Reason.MISSING_FIELD]
    assert OPTIONAL.decode_batch([b"{}", b'{"op": "c", "k": "a"}', b'{"payload": 1}'], NOW)[1] == {}


def test_the_detail_of_an_unknown_member_lists_the_declared_fields() -> None:
    error = STRICT.refusal(event(amuont=1), NOW)
    assert error is not None
    assert error.detail == "amuont is not declared; fields are ts, k, amount, count, paid"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("200.0", 200), ("2e2", 200), ("2.50E+2", 250), ("-0.0", 0), ("0e999999999", 0), ("200.5", None), ("0.5", None),
        ("9007199254740993.0", 2**53 + 1), ("9007199254740993.5", None), ("1e-400", None),
        ("9223372036854775807.000", 2**63 - 1), ("-9.223372036854775808e18", -(2**63)),
    ],
)  # fmt: skip
def test_integers_are_exact_in_every_notation(text: str, value: int | None) -> None:
    """A float cannot represent 2^53 + 1."""
    raw = b'{"ts": 1795800000000, "k": "a", "count": %s}' % text.encode()
    assert whole_number(text) == value
    error = DECODER.refusal(raw, NOW)
    assert (error.reason if error else DECODER.decode(raw, NOW).count) == (Reason.MISTYPED if value is None else value)


@pytest.mark.parametrize(
    "text", ["1e19", "1e999999999999999999", "-1e999999", "9223372036854775808.0", "1e" + "9" * 400]
)
def test_a_number_with_a_huge_exponent_is_out_of_range(text: str) -> None:
    """The check does not compute the digits of 10^999999."""
    error = DECODER.refusal(b'{"ts": 1795800000000, "k": "a", "count": %s}' % text.encode(), NOW)
    assert error is not None
    assert (error.reason, error.field) == (Reason.OUT_OF_RANGE, "count")


@given(st.integers(-(2**63), 2**63 - 1), st.integers(0, 25), st.integers(-25, 25))
def test_random_integers_are_equal_in_every_notation(value: int, zeros: int, shift: int) -> None:
    """Notations have additional zeros, and a point that is moved by an exponent."""
    digits = f"{abs(value)}{'0' * zeros}"
    place = len(digits) - zeros - shift
    padded = digits.rjust(len(digits) - place + 1, "0") if place < 1 else digits.ljust(place + 1, "0")
    point = max(place, 1)
    text = f"{'-' * (value < 0)}{padded[:point]}.{padded[point:]}e{shift}"
    if text.lstrip("-").startswith("0") and point > 1:
        return  # The text is not valid JSON.
    raw = b'{"ts": 1795800000000, "k": "a", "count": %s}' % text.encode()
    assert DECODER.decode(raw, NOW).count == value


@given(st.binary(max_size=80) | st.binary(max_size=20).map(lambda b: b'{"k": ' + b))
def test_an_error_for_any_bytes_has_a_detail(raw: bytes) -> None:
    for decoder in (DECODER, STRICT, OPTIONAL):
        error = decoder.refusal(raw, NOW)
        assert error is None or 0 < len(error.detail) < 500
