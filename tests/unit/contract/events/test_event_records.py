"""Tests of fields that are read from records: the key, headers, timestamp, partition and offset."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from tidemill_contract.events import validator
from tidemill_contract.events.decoder import InvalidEvent, Reason
from tidemill_contract.events.event_times import EventTimes
from tidemill_contract.events.formats.csv_lines import CsvLines
from tidemill_contract.events.records import RecordDecoder
from tidemill_contract.resource.spec import PipelineSpec

NOW = 1_700_000_000_000
FIELDS: list[dict[str, Any]] = [
    {"name": "n", "type": "integer", "path": "order.n"},
    {"name": "shop", "type": "string", "from": "key"},
    {"name": "region", "type": "string", "from": "header", "path": "X-Region", "required": True},
    {"name": "tries", "type": "integer", "from": "header", "default": 1},
    {"name": "sent", "type": "timestamp", "from": "header", "path": "ce.time"},
    {"name": "came", "type": "timestamp", "from": "timestamp"},
    {"name": "part", "type": "integer", "from": "partition"},
    {"name": "place", "type": "integer", "from": "offset"},
]
NAMES = [field["name"] for field in FIELDS]


@dataclass(frozen=True)
class Sent:
    """A record of a topic."""

    own_key: bytes | None = None
    own_headers: Sequence[tuple[str, bytes | None]] | None = (("X-Region", b"eu"),)
    time: int = NOW

    def value(self) -> bytes | None:
        return b"{}"

    def key(self) -> bytes | None:
        return self.own_key

    def headers(self) -> Sequence[tuple[str, bytes | None]] | None:
        return self.own_headers

    def partition(self) -> int:
        return 3

    def offset(self) -> int:
        return 70

    def timestamp(self) -> tuple[int, int]:
        return 1, self.time


def make_decoder(
    fields: list[dict[str, Any]] = FIELDS, *, time: str | None = None, group: str = "n", record_format: str = "json"
) -> RecordDecoder:
    source = {"format": record_format, "fields": fields, "eventTime": {"field": time} if time else {}}
    window, metrics = {"type": "tumbling", "size": "1m"}, [{"name": "count", "function": "count"}]
    aggregations = [{"name": "a", "groupBy": [group], "window": window, "metrics": metrics}]
    spec = PipelineSpec.model_validate({"source": source, "aggregations": aggregations})
    return RecordDecoder(PipelineSpec.model_validate_json(spec.model_dump_json(by_alias=True)), exact=True)


DECODER = make_decoder()


def read(record: Sent, raw: bytes = b'{"order": {"n": 5}}', decoder: RecordDecoder = DECODER) -> Any:
    """Return a record's values by name, or its error."""
    decoded = decoder.decode_all([raw], NOW, records=[record])
    error = decoder.refusal(raw, NOW, record)
    if error is not None:
        assert decoded.invalid[0].detail == error.detail
        assert decoded.events == [None]
        return error
    assert decoded.invalid == {}
    values = json.loads(decoder.as_json(decoded.events, [raw])[0])
    assert {name: decoder.values(decoded.events, name)[0] for name in values} == values
    return values


LEAST = {
    "n": 5, "shop": None, "region": "eu", "tries": 1, "sent": None, "came": NOW, "part": 3, "place": 70,
}  # fmt: skip
READ: list[tuple[str, Sent, dict[str, Any]]] = [
    ("optional parts are absent", Sent(), {}),
    ("a key", Sent(b"S\xc3\xbcd"), {"shop": "Süd"}),
    ("a key that looks like JSON", Sent(b'{"a": "b"}'), {"shop": '{"a": "b"}'}),
    ("an empty key is no null", Sent(b""), {"shop": ""}),
    ("a header's number", Sent(None, [("X-Region", b"eu"), ("tries", b"3")]), {"tries": 3}),
    ("a whole number with a point", Sent(None, [("X-Region", b"eu"), ("tries", b"3.0")]), {"tries": 3}),
    ("a header without a value", Sent(None, [("X-Region", b"eu"), ("tries", None)]), {}),
    ("the last of several headers", Sent(None, [("X-Region", b"us"), ("X-Region", b"eu")]), {}),
    (
        "a time as text",
        Sent(None, [("X-Region", b"eu"), ("ce.time", b"2023-11-14T22:13:20.5Z")]),
        {"sent": NOW + 500},
    ),
    ("a time in milliseconds", Sent(None, [("X-Region", b"eu"), ("ce.time", b"1700000000000")]), {"sent": NOW}),
    ("a record without a time", Sent(time=-1), {"came": None}),
    ("other headers", Sent(None, [("x-region", b"us"), ("X-Region", b"eu"), ("b", b"\xff")]), {}),
]


@pytest.mark.parametrize(("reason", "record", "changed"), READ, ids=[row[0] for row in READ])
def test_fields_are_read_from_parts_of_the_record(reason: str, record: Sent, changed: dict[str, Any]) -> None:
    assert read(record) == {**LEAST, **changed}


REFUSED: list[tuple[Sent, Reason, str, str]] = [
    (Sent(None, None), Reason.MISSING_FIELD, "region", "region is missing; send it; the field is read from"),
    (Sent(b"\xff"), Reason.MISTYPED, "shop", "the record's key is not UTF-8; send text"),
    (Sent(b"a\0"), Reason.BAD_STRING, "shop", "contains a NUL character"),
    (
        Sent(None, [("X-Region", b"eu"), ("tries", b"two")]),
        Reason.MISTYPED, "tries", 'tries: expected integer, got string "two"; send a whole number, or declare the field'
        " as string; the field is read from header tries",
    ),
    (Sent(None, [("X-Region", b"eu"), ("ce.time", b"1700000000")]), Reason.OUT_OF_RANGE, "sent", "sent: 1700000000"),
    (Sent(time=2**62), Reason.OUT_OF_RANGE, "came", "came: 4611686018427387904 ms is outside"),
]  # fmt: skip


@pytest.mark.parametrize(("record", "reason", "field", "detail"), REFUSED)
def test_a_refusal_names_the_part_of_the_record(record: Sent, reason: Reason, field: str, detail: str) -> None:
    error = read(record)
    assert isinstance(error, InvalidEvent)
    assert (error.reason, error.field) == (reason, field)
    assert error.detail.startswith(detail)


def test_an_invalid_event_is_refused_before_its_record_is_read() -> None:
    error = read(Sent(None, None), b'{"order": 5}')
    assert (error.reason, error.field) == (Reason.MISTYPED, "n")


def test_members_of_the_event_cannot_replace_parts_of_the_record() -> None:
    raw = json.dumps({"order": {"n": 5}, "region": "us", "part": 9, "<header> region": "us", "<key> shop": 1})
    assert read(Sent(), raw.encode()) == LEAST


def test_only_invalid_records_of_a_batch_are_refused() -> None:
    raws = [b'{"order": {"n": %d}}' % n for n in range(4)]
    raws[1] = b"{"
    records = [Sent(b"a"), Sent(b"b"), Sent(b"c", None), Sent(b"d")]
    decoded = DECODER.decode_all(raws, NOW, records=records)
    assert {index: error.reason for index, error in decoded.invalid.items()} == {
        1: Reason.NOT_JSON, 2: Reason.MISSING_FIELD,
    }  # fmt: skip
    events = [event for event in decoded.events if event is not None]
    assert (DECODER.values(events, "n"), DECODER.values(events, "shop")) == ([0, 3], ["a", "d"])


def test_the_event_time_may_be_read_from_a_header() -> None:
    decoder = make_decoder(time="sent")
    sent = Sent(None, [("X-Region", b"eu"), ("ce.time", b"2023-11-14T22:13:19.123456Z")])
    decoded = decoder.decode_all([b"{}", b"[]", b"{}"], NOW, records=[sent, sent, Sent()])
    assert decoded.micros == [456, 0, 0]
    assert decoder.values(decoded.events[:1], "sent") == [NOW - 877]
    assert {index: error.reason for index, error in decoded.invalid.items()} == {
        1: Reason.NOT_AN_OBJECT, 2: Reason.MISSING_FIELD,
    }  # fmt: skip
    future = Sent(None, [("X-Region", b"eu"), ("ce.time", b"%d" % (2 * NOW))])
    assert read(future, b"{}", decoder).reason is Reason.TOO_FAR_IN_THE_FUTURE


def test_a_group_key_that_is_read_from_the_record_has_the_limit_of_length() -> None:
    decoder = make_decoder(group="shop")
    assert read(Sent(b"x" * 1024), decoder=decoder)["shop"] == "x" * 1024
    assert read(Sent(b"x" * 1025), decoder=decoder).reason is Reason.KEY_TOO_LONG


def test_records_are_not_read_if_no_field_needs_them() -> None:
    decoder = make_decoder([{"name": "n", "type": "integer"}])
    decoded = decoder.decode_all([b'{"n": 1}'], NOW, records=[None])  # type: ignore[list-item]
    assert (decoder.has_outside_fields, decoder.values(decoded.events, "n")) == (False, [1])


def fails_with(word: str, real: Any) -> Any:
    """Return a function that fails if an argument contains this word."""

    def failing(*arguments: Any, **named: Any) -> Any:
        if any(word in str(each) for each in arguments):
            raise OverflowError("too large for a float")
        return real(*arguments, **named)

    return failing


PLACES: list[tuple[str, Any, str, str]] = [
    ("json", validator, "read_time", "value"),
    ("json", validator, "read_time", "header"),
    ("csv", validator, "read_time", "value"),
    ("csv", CsvLines, "document", "value"),
    ("json", RecordDecoder, "_text_document", "header"),
]


@pytest.mark.parametrize(("record_format", "owner", "function", "origin"), PLACES)
def test_an_event_that_causes_an_internal_error_is_a_dead_letter_and_the_others_count(
    record_format: str, owner: Any, function: str, origin: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(EventTimes, "are_all_valid", fails_with("", EventTimes.are_all_valid))
    monkeypatch.setattr(owner, function, fails_with("1600000000000", getattr(owner, function)))
    at = {"name": "at", "type": "timestamp", "from": origin}
    decoder = make_decoder([at, {"name": "n", "type": "integer"}], record_format=record_format)
    times = [1_500_000_000_000, 1_600_000_000_000, NOW]
    raws = [b"%d,7" % time if record_format == "csv" else b'{"at": %d, "n": 7}' % time for time in times]
    decoded = decoder.decode_all(raws, NOW, records=[Sent(None, [("at", b"%d" % time)]) for time in times])
    assert {index: error.reason for index, error in decoded.invalid.items()} == {1: Reason.UNREADABLE}
    assert "a fault in Tidemill (OverflowError: too large for a float)" in decoded.invalid[1].detail
    assert decoder.values([decoded.events[0], decoded.events[2]], "at") == [times[0], NOW]
