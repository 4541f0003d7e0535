"""Tests of decimals in events: which texts are accepted, and that no digit is lost."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kafka_records import KafkaRecord, records
from tidemill_contract.events.decoder import EventDecoder, InvalidEvent
from tidemill_contract.events.records import RecordDecoder
from tidemill_contract.events.types import default_of
from tidemill_contract.resource.source import FieldSpec
from tidemill_contract.resource.spec import PipelineSpec
from tidemill_ingest.records import _encoder
from tidemill_processor.batches.exploding import batch_reader

NOW = 1_795_800_000_000


def spec(*fields: dict[str, Any], **source: Any) -> PipelineSpec:
    return PipelineSpec.model_validate(
        {
            "source": {"fields": list(fields), **source},
            "aggregations": [
                {
                    "name": "a",
                    "window": {"type": "tumbling", "size": "1m"},
                    "metrics": [{"name": "n", "function": "count"}],
                }
            ],
        }
    )


def amount(scale: int = 2, **further: Any) -> dict[str, Any]:
    return {"name": "amount", "type": "decimal", "scale": scale, **further}


def decoded(decoder: EventDecoder, text: str) -> Any:
    return decoder.values([decoder.decode(f'{{"amount": {text}}}'.encode(), NOW)], "amount")[0]


@pytest.mark.parametrize(
    ("text", "scaled", "reason"),
    [
        ("12.5", 1250, "fewer digits than the scale are accepted"),
        ('"12.50"', 1250, "a text is accepted"),
        ("12", 1200, "a whole number is accepted"),
        ("12.500", 1250, "zeros after the last digit are accepted"),
        ("1.25e1", 1250, "an exponent is accepted"),
        ('"+12.50"', 1250, "a sign is accepted"),
        ("-0.00", 0, "zero has no sign"),
        ("99999999.99", 9_999_999_999, "all digits of the precision are accepted"),
        ("-99999999.99", -9_999_999_999, "all digits of a negative number are accepted"),
        ("0.1", 10, "0.1 is exact, although no double equals 0.1"),
        ("null", None, "null is no value"),
    ],
)
def test_decimals_are_read_as_scaled_integers(text: str, scaled: int | None, reason: str) -> None:
    assert decoded(EventDecoder(spec(amount(precision=10))), text) == scaled, reason


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("12.345", "mistyped: amount: 12.345 has more than 2 digits after the point; round the number before sending"),
        ('"12.345"', "mistyped: amount: 12.345 has more than 2 digits after the point"),
        ("100000000", "out_of_range: amount: 100000000 does not fit decimal(10,2), at most 8 digits before the point"),
        ("1e400", "out_of_range: amount: 1E+400 does not fit decimal(10,2)"),
        ("1e99999999999999999999", "out_of_range: amount: expected decimal(10,2), got number 1e99999999999999999999;"),
        ('"NaN"', "mistyped: amount: expected decimal(10,2), got NaN; send null"),
        ('"-Infinity"', "mistyped: amount: expected decimal(10,2), got -Infinity; send null"),
        ('"12,50"', 'mistyped: amount: expected decimal(10,2), got string "12,50"; write a decimal point'),
        ('"EUR 12"', 'mistyped: amount: expected decimal(10,2), got string "EUR 12"; send a number such as 12.50'),
        ('""', 'mistyped: amount: expected decimal(10,2), got string ""'),
        ('"1_000"', 'mistyped: amount: expected decimal(10,2), got string "1_000"; send a number such as 12.50'),
        ('"_1"', 'mistyped: amount: expected decimal(10,2), got string "_1"'),
        ('"१२"', 'mistyped: amount: expected decimal(10,2), got string "१२"'),
        ('"1\\u0663"', 'mistyped: amount: expected decimal(10,2), got string "1'),
        ("true", "mistyped: amount: expected decimal(10,2), got boolean true"),
        ("[1]", "mistyped: amount: expected decimal(10,2), got array; send one value"),
    ],
)
def test_a_value_that_is_no_decimal_is_refused_with_its_field(text: str, error: str) -> None:
    """Values with too many digits are not rounded, as sums would differ from the sums of the sender."""
    decoder = EventDecoder(spec(amount(precision=10)))
    with pytest.raises(InvalidEvent) as refused:
        decoded(decoder, text)
    assert str(refused.value).startswith(error)
    assert decoder.decode_all([b'{"amount": 1}', f'{{"amount": {text}}}'.encode()], NOW).invalid.keys() == {1}


PLACES: list[tuple[dict[str, Any], str]] = [
    (amount(), '{"amount":%s}'),
    (amount(), '{"amount" :\n%s}'),
    (amount(), '{"\\u0061mount":%s}'),
    (amount(path="order.a_b"), '{"order": {"a_b": %s}}'),
    (amount(path="order[0]"), '{"order": [%s]}'),
    (amount(path="prices[]"), '{"prices": [1, %s, 2]}'),
    (amount(path="lines[].price"), '{"lines": [{"price": 1}, {"price": %s}]}'),
]


@pytest.mark.parametrize(("field", "event"), PLACES, ids=[event for _, event in PLACES])
@pytest.mark.parametrize("text", ["1_000", "1_0.5", "٣", "1\\u0663", "१.५"])
def test_underscores_and_digits_beyond_ascii_are_refused_in_every_kind_of_path(
    field: dict[str, Any], event: str, text: str
) -> None:
    """Python reads such texts as numbers. Such events are refused alone and among other events."""
    reader = batch_reader(spec(field, {"name": "city", "type": "string"}))
    good = [(event % value).encode() for value in ('"12.5"', '"+1"', "7", "null")]
    good.append('{"city": "Ås_1", '.encode() + good[0][1:])
    other = (event % f'"{text}"').encode()
    for raws in ([other], [*good, other], [other, *good * 40]):
        (letter,) = reader.read(records(*raws), NOW).dead_letters
        assert (letter.offset, letter.reason, letter.field) == (raws.index(other), "mistyped", "amount")
    assert reader.read(records(*good * 40), NOW).dead_letters == ()


@pytest.mark.parametrize("text", ["1_000", "१२", "٣"])
def test_csv_headers_and_defaults_refuse_underscores_and_digits_beyond_ascii(text: str) -> None:
    csv = spec(amount(), {"name": "city", "type": "string"}, format="csv")
    (letter,) = batch_reader(csv).read(records(f"{text},a_b".encode(), b"1.5,c"), NOW).dead_letters
    assert (letter.offset, letter.reason, letter.field) == (0, "mistyped", "amount")
    price = {"name": "price", "type": "decimal", "scale": 2, "from": "header", "path": "x-price"}
    decoder = RecordDecoder(spec(amount(), price))
    error = decoder.refusal(b'{"amount": 3}', NOW, Sent(text))
    assert str(error).startswith(f'mistyped: price: expected decimal(18,2), got string "{text}"')
    with pytest.raises(ValueError, match="is not of type decimal"):
        default_of(FieldSpec.model_validate(amount(default=text)))


@st.composite
def drawn(draw: st.DrawFn) -> tuple[int, int, list[Decimal], list[str]]:
    """Return precision, scale, values, and JSON texts of the values."""
    precision = draw(st.integers(1, 18))
    scale = draw(st.integers(0, precision))
    values, texts = [], []
    for scaled in draw(st.lists(st.integers(1 - 10**precision, 10**precision - 1), min_size=1, max_size=8)):
        value = Decimal(scaled).scaleb(-scale)
        text = draw(st.sampled_from([f"{value:f}", f"{value}", f"{value.normalize():f}", f"{value:e}"]))
        values.append(value)
        texts.append(json.dumps(text) if draw(st.booleans()) else text)
    return precision, scale, values, texts


@given(drawn())
def test_random_decimals_equal_those_of_pythons_decimal_module(
    given: tuple[int, int, list[Decimal], list[str]],
) -> None:
    """Events are decoded alone and in a batch, and their values are equal in stored events and record keys."""
    precision, scale, values, texts = given
    field = amount(scale, precision=precision)
    decoder = EventDecoder(spec(field))
    raws = [f'{{"amount": {text}}}'.encode() for text in texts]
    batch = decoder.decode_all(raws, NOW)
    assert batch.invalid == {}
    scaled = decoder.values(batch.events, "amount")
    assert [Decimal(each).scaleb(-scale) for each in scaled] == values
    assert [decoded(decoder, text) for text in texts] == scaled
    kept = [json.loads(text)["amount"] for text in decoder.as_json(batch.events, raws)]
    assert [(Decimal(text), Decimal(text).as_tuple().exponent) for text in kept] == [(v, -scale) for v in values]
    assert [_encoder(f"decimal({scale})")(each).decode() for each in scaled] == kept


def test_a_default_applies_to_absent_and_null_decimals() -> None:
    decoder = EventDecoder(spec(amount(3, default="1.5", path="x.y")))
    for raw in (b"{}", b'{"x": {"y": null}}', b'{"x": null}', b'{"x": {"y": 1.5}}'):
        event = decoder.decode(raw, NOW)
        assert decoder.values([event], "amount") == [1500]
        assert json.loads(decoder.as_json([event], [raw])[0]) == {"amount": "1.500"}


class Sent(KafkaRecord):
    """A record with a header."""

    def __init__(self, price: str) -> None:
        self._price = price

    def headers(self) -> list[tuple[str, bytes]]:  # type: ignore[override]
        return [("x-price", self._price.encode())]


def test_decimals_are_read_from_headers() -> None:
    price = {"name": "price", "type": "decimal", "scale": 2, "from": "header", "path": "x-price"}
    decoder = RecordDecoder(spec(amount(), price))
    (event,) = decoder.decode_all([b'{"amount": 3}'], NOW, records=[Sent("12.5")]).events
    assert decoder.values([event], "price") == [1250]
    assert json.loads(decoder.as_json([event], [b""])[0]) == {"amount": "3.00", "price": "12.50"}
