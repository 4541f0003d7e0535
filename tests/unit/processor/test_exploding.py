"""Tests of batches with exploded arrays: each element of an array becomes a row with the fields of its record."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kafka_records import ARRIVED_MS, RawRecord, records
from tidemill_contract.events.invalid_events import QUARANTINE_PREFIX, InvalidEvent, Reason
from tidemill_contract.events.quarantine import headers
from tidemill_contract.functions.partials import build_layout, field_types
from tidemill_contract.resource.spec import PipelineSpec
from tidemill_processor.batches import exploding
from tidemill_processor.batches.batch import DATA, ELEMENT, INDEX, OFFSET, PARTITION, TIME, Batch
from tidemill_processor.batches.exploding import ExplodingReader, batch_reader
from tidemill_processor.batches.side_inputs import SideInputs
from tidemill_processor.dead_letters import DeadLetter
from tidemill_processor.loop import Loop
from tidemill_processor.merge.aggregate import aggregate
from tidemill_processor.replay import Throttle

NOW = ARRIVED_MS + 1_000
FIELDS = [
    {"name": "id", "type": "integer", "required": True},
    {"name": "sku", "type": "string", "path": "items[].sku"},
    {"name": "price", "type": "number", "path": "items[].price"},
    {"name": "place", "type": "integer", "from": "offset"},
]


def spec(fields: list[dict[str, Any]] = FIELDS, *, time: str | None = None, **rest: Any) -> PipelineSpec:
    metrics = [{"name": "n", "function": "count"}, *rest.pop("metrics", [])]
    window = {"type": "tumbling", "size": "1m"}
    aggregation = {"name": "a", "window": window, "metrics": metrics, "groupBy": rest.pop("group", [])}
    written = {"format": rest.pop("format")} if "format" in rest else {}
    source = {"fields": fields, "eventTime": {"field": time} if time else {}, **written}
    return PipelineSpec.model_validate({"source": source, "aggregations": [aggregation], **rest})


def rows(batch: Batch, *names: str) -> list[tuple[Any, ...]]:
    return batch.frame.select(names).rows()


def places(letters: tuple[DeadLetter, ...]) -> list[tuple[int, int | None, str]]:
    return [(letter.offset, letter.element, letter.reason) for letter in letters]


def test_a_pipeline_without_an_array_has_the_plain_reader() -> None:
    plain = spec([{"name": "id", "type": "integer"}])
    assert type(batch_reader(plain)) is not ExplodingReader
    assert type(batch_reader(spec())) is ExplodingReader


def test_each_element_is_a_row_with_the_fields_of_its_record() -> None:
    """A record without elements is consumed and gives no rows."""
    sent = records(
        {"id": 1, "items": [{"sku": "a", "price": 2}, {"sku": "b"}]}, {"id": 2}, {"id": 3, "items": []},
        {"id": 4, "items": [{"sku": "c", "price": 0.5}]},
    )  # fmt: skip
    of = spec(transform={"derive": [{"name": "twice", "expression": "price * 2 + id"}], "filter": "id < 9"})
    batch = batch_reader(of).read(sent, NOW)
    assert rows(batch, "id", "sku", "price", "place", "twice", PARTITION, OFFSET, ELEMENT, INDEX) == [
        (1, "a", 2.0, 0, 5.0, 0, 0, 0, 0),
        (1, "b", None, 0, None, 0, 0, 1, 1),
        (4, "c", 0.5, 3, 5.0, 0, 3, 0, 2),
    ]
    assert (batch.next_offsets, batch.consumed, batch.filtered, batch.dead_letters) == ({0: 4}, {0: 4}, {}, ())
    assert [batch.message(index).offset() for index in range(3)] == [0, 0, 3]


def test_an_invalid_element_is_a_dead_letter_and_the_other_elements_count() -> None:
    """The dead letter contains the element's index and text. An invalid record is a single dead letter."""
    sent = records(
        {"id": 1, "items": [{"sku": "a"}, {"sku": 5}, {"sku": "b"}]}, b"nonsense", {"id": "x", "items": [{"sku": "c"}]},
        {"id": 2, "items": [7]},
    )  # fmt: skip
    batch = batch_reader(spec(metrics=[{"name": "last", "function": "last", "field": "sku"}])).read(sent, NOW)
    assert [row[0] for row in rows(batch, "sku")] == ["a", "b"]
    assert places(batch.dead_letters) == [
        (1, None, "not_json"), (2, None, "mistyped"), (0, 1, "mistyped"), (3, 0, "mistyped"),
    ]  # fmt: skip
    assert [letter.value for letter in batch.dead_letters[2:]] == [b'{"sku": 5}', b"7"]
    assert batch.consumed == {0: 4}
    assert batch.invalid_counts == {0: 4}


def test_a_row_that_the_database_refuses_is_a_dead_letter_of_its_element() -> None:
    sent = records({"id": 1, "items": []}, {"id": 1, "items": [{"sku": "a"}, {"sku": "b"}, {"sku": "c"}]})
    batch = batch_reader(spec()).read(sent, NOW).refuse([1, 2], Reason.REFUSED_BY_DATABASE, "why")
    assert places(batch.dead_letters) == [(1, 1, "refused_by_database"), (1, 2, "refused_by_database")]
    assert [letter.value for letter in batch.dead_letters] == [b'{"sku": "b"}', b'{"sku": "c"}']
    assert batch.frame[INDEX].to_list() == [0]


def test_a_record_that_ingest_refused_is_a_single_dead_letter() -> None:
    raw = b'{"id": "x", "items": [{"sku": 5}, {"sku": 6}]}'

    @dataclass(frozen=True)
    class Marked(RawRecord):
        def headers(self) -> Any:
            return headers(InvalidEvent(Reason.MISTYPED, "id", "as ingest said"))

    batch = batch_reader(spec()).read([Marked(0, 0, QUARANTINE_PREFIX + raw)], NOW)
    ((letter,),) = (batch.dead_letters,)
    assert (letter.element, letter.reason, letter.detail, letter.value) == (None, "mistyped", "as ingest said", raw)


def test_stored_events_of_elements_have_the_fields_of_the_record() -> None:
    sent = records({"id": 1, "items": [{"sku": "a", "price": 1}, {}]})
    batch = batch_reader(spec(events={"store": True})).read(sent, NOW)
    assert [json.loads(text) for (text,) in rows(batch, DATA)] == [
        {"id": 1, "place": 0, "sku": "a", "price": 1.0}, {"id": 1, "place": 0, "sku": None, "price": None},
    ]  # fmt: skip


def test_the_elements_of_a_record_count_as_a_single_time() -> None:
    """A jump of event time counts only after three events, and elements of a record must not suffice."""
    fields = [{"name": "at", "type": "timestamp", "path": "points[].at"}]
    sent = records({"points": [{"at": NOW - 5}, {"at": NOW - 9}]}, {"points": [{"at": NOW - 7}]}, {"points": []})
    batch = batch_reader(spec(fields, time="at")).read(sent, NOW)
    assert batch.times_of(0) == [NOW - 5, NOW - 7]
    assert [row[0] for row in rows(batch, TIME)] == [NOW - 5, NOW - 9, NOW - 7]
    assert batch.latest_times() == {0: NOW - 5}


def test_elements_have_the_time_of_their_record_if_there_is_no_time_field() -> None:
    batch = batch_reader(spec()).read(records({"id": 1, "items": [{}, {}]}), NOW)
    assert [row[0] for row in rows(batch, TIME)] == [ARRIVED_MS, ARRIVED_MS]


def test_first_and_last_order_the_elements_of_a_record_by_index() -> None:
    wanted = [{"name": name, "function": name, "field": "sku"} for name in ("first", "last")]
    of = spec(metrics=wanted)
    sent = records({"id": 1, "items": [{"sku": sku} for sku in "mzaq"]}, {"id": 1, "items": [{"sku": "b"}]})
    batch = batch_reader(of).read(sent, NOW)
    layout = build_layout(of.aggregations[0], field_types(of, {}))
    (row,) = aggregate(batch.frame, layout, closed_until=None, epochs={0: 3}).rows.rows(named=True)
    values = {name: value for name, value in row.items() if "first" in name or "last" in name}
    assert sorted(map(str, values.values())) == sorted(
        ["m", "b", f"{{{ARRIVED_MS},0,3,0,0,0}}", f"{{{ARRIVED_MS},0,3,0,1,0}}"]
    )


def test_a_batch_is_cut_between_records() -> None:
    sent = records(*({"id": n, "items": [{"sku": str(i)} for i in range(n)]} for n in (2, 0, 3, 1)), b"[]")
    batch = batch_reader(spec(transform={"filter": "sku <> '1'"})).read(sent, NOW)
    cut = batch.before_offsets({0: 3})
    assert [row[0] for row in rows(cut, OFFSET)] == [0, 2, 2]
    assert (cut.next_offsets, cut.consumed, cut.filtered, cut.dead_letters) == ({0: 3}, {0: 3}, {0: 2}, ())


def framed(event: bytes) -> bytes:
    return b"\0\0\0\0\7" + event


WRITTEN: list[tuple[Any, Callable[[bytes], bytes]]] = [
    ({"deletes": "ignore"}, bytes),
    ({"type": "jsonSchema"}, framed),
    ({"type": "jsonSchema", "envelope": "connect"}, lambda event: framed(b'{"schema": {}, "payload": %b}' % event)),
    ({"envelope": "connect"}, lambda event: b'{"schema": {"items": [1]}, "payload": %b}' % event),
    ({"envelope": "debezium"}, lambda event: b'{"before": null, "op": "c", "items": [], "after": %b}' % event),
    ({"envelope": "cloudevents"}, lambda event: b'{"specversion": "1.0", "items": [9], "data": %b}' % event),
    (
        {"envelope": "cloudevents"},
        lambda event: b'{"specversion": "1.0", "data_base64": "%b"}' % base64.b64encode(event),
    ),
]


@pytest.mark.parametrize(("form", "write"), WRITTEN)
@pytest.mark.parametrize("keeps", [False, True])
def test_arrays_in_envelopes_and_frames_are_exploded_like_arrays_of_plain_json(
    form: Any, write: Callable[[bytes], bytes], keeps: bool
) -> None:
    """The array of the event is exploded, not an array of the envelope."""
    sent = [
        json.dumps(event).encode()
        for event in (
            {"id": 1, "items": [{"sku": "a", "price": 2}, {"sku": 5}, {"sku": "b"}]}, {"id": "x"}, {"id": 2},
            {"id": 4, "items": [{"sku": "c"}] * 2 + [{"sku": "d"}] * 9_999}, {"id": 3, "items": [{"sku": "é"}]},
        )
    ]  # fmt: skip
    plain = batch_reader(spec(events={"store": keeps})).read(records(*sent), NOW)
    reader = batch_reader(spec(events={"store": keeps}, format=form))
    batch = reader.read(records(*map(write, sent)), NOW)
    assert batch.frame.equals(plain.frame)
    assert (batch.consumed, batch.filtered, batch.origins) == (plain.consumed, {}, plain.origins)
    assert places(batch.dead_letters) == places(plain.dead_letters) == [
        (1, None, "mistyped"), (0, 1, "mistyped"), (3, None, "too_large"),
    ]  # fmt: skip
    later = batch.refuse([2, 3], Reason.REFUSED_BY_DATABASE, "why").dead_letters[-2:]
    assert [letter.value for letter in later] == [b'{"sku": "b"}', b'{"sku": "\\u00e9"}']


def test_ignored_deletes_have_no_elements() -> None:
    fields = [*FIELDS, {"name": "op", "type": "string", "from": "envelope"}]
    of = spec(fields, group=["op", "sku"], format={"envelope": "debezium", "deletes": "ignore"})
    row = {"id": 1, "items": [{"sku": "a"}, {"sku": "b"}]}
    values = {"op": "d", "before": row}, {"op": "c", "after": row}, {"op": "d", "before": row}, {"op": "x"}
    reader = batch_reader(of)
    whole = reader.join([reader.decode(records(*values), NOW), reader.decode(records(*values, p=1), NOW)])
    assert rows(whole, "op", "sku", PARTITION) == [("c", "a", 0), ("c", "b", 0), ("c", "a", 1), ("c", "b", 1)]
    assert (whole.consumed, whole.filtered) == ({0: 4, 1: 4}, {0: 2, 1: 2})
    assert places(whole.dead_letters) == [(3, None, "not_an_envelope")] * 2
    cut = whole.before_offsets({0: 4, 1: 2})
    assert (cut.consumed, cut.filtered, cut.next_offsets) == ({0: 4, 1: 2}, {0: 2, 1: 1}, {0: 4, 1: 2})


SIZES = st.lists(st.integers(0, 30), min_size=1, max_size=25)


@settings(max_examples=50, deadline=None)
@given(SIZES, st.booleans())
def test_records_with_many_elements_are_read_in_bounded_pieces(sizes: list[int], keeps: bool) -> None:
    """Pieces consist of whole records, and give the same batch as one reading."""
    of = spec(events={"store": keeps})
    sent = records(*({"id": n, "items": [{"sku": f"{n}.{i}"} for i in range(size)]} for n, size in enumerate(sizes)))
    reader, pieces, rest = batch_reader(of), [], sent
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exploding, "MAX_ELEMENTS", 40)
        while rest:
            before = len(rest)
            piece, rest = reader.decode_some(rest, NOW)
            assert 0 < len(piece.messages) == before - len(rest)
            assert piece.event_count <= 40 or len(piece.messages) == 1
            pieces.append(piece)
    batch, whole = reader.join(pieces), batch_reader(of).read(sent, NOW)
    assert batch.frame.equals(whole.frame)
    assert (batch.origins, batch.next_offsets, batch.consumed) == (whole.origins, whole.next_offsets, whole.consumed)
    assert [row[0] for row in rows(batch, INDEX)] == list(range(sum(sizes)))
    assert [batch.message(i).offset() for i in range(sum(sizes))] == [
        n for n, size in enumerate(sizes) for _ in range(size)
    ]


@pytest.mark.parametrize(
    ("ready", "stopping", "continues"),
    [({0, 1}, False, True), ({0}, False, False), (set(), False, False), ({0, 1}, True, False)],
)
def test_the_rest_of_a_call_is_dropped_if_the_processor_or_a_partition_stops(
    ready: set[int], stopping: bool, continues: bool
) -> None:
    """After a failed commit, later records of the call must not be stored, and are read again."""

    class Source:
        def __init__(self) -> None:
            self.ready, self.stopped = frozenset(ready), False

        def pause(self) -> None:
            self.stopped = True

    loop, source, processed = Loop.__new__(Loop), Source(), list[Any]()
    loop.__dict__.update(
        _source=source, _stopping=stopping, superseded_reason="", _undecoded=records({"id": 1}, {"id": 2}), _limit=10,
        _throttle=Throttle(0), _reader=batch_reader(spec()), _process=processed.append,
        _side_inputs=SideInputs(),
    )  # fmt: skip
    loop._process_undecoded(frozenset({0, 1}))
    assert (len(processed), source.stopped, len(loop._undecoded)) == (continues, not continues, 0)


def test_a_record_with_too_many_elements_is_a_dead_letter() -> None:
    sent = records({"id": 1, "items": [{"sku": "a"}]}, b'{"id": 2, "items": [' + b"1," * 400_000 + b"1]}")
    batch = batch_reader(spec()).read([*sent, RawRecord(0, 2, b'{"id": 3, "items": [{"sku": "b"}]}')], NOW)
    assert (batch.frame.height, places(batch.dead_letters)) == (2, [(1, None, "too_large")])
    assert "items has 400001 elements; at most 10000 are allowed" in (batch.dead_letters[0].detail or "")
