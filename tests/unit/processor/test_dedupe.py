"""Tests of dedupe: which events of a batch are duplicates, by a model that remembers every event."""

from __future__ import annotations

from dataclasses import replace

import polars as pl
from hypothesis import given
from hypothesis import strategies as st

from kafka_records import NOW_MS, records
from tidemill_contract.resource.spec import PipelineSpec
from tidemill_processor.batches.batch import INDEX, PARTITION, TIME, Batch
from tidemill_processor.batches.exploding import batch_reader
from tidemill_processor.merge.dedupe import ID, LONGEST, Judge, Memory

WINDOW = 10
JUDGE = Judge("id", numbered=False, window_ms=WINDOW)


def batch(events: list[tuple[str | None, int]]) -> Batch:
    frame = pl.DataFrame(
        {
            TIME: [time for _, time in events],
            PARTITION: [n % 2 for n in range(len(events))],
            INDEX: range(len(events)),
            "id": [id_ for id_, _ in events],
        },
        {TIME: pl.Int64, PARTITION: pl.Int32, INDEX: pl.UInt32, "id": pl.String},
    )
    return Batch(frame, frame.select(TIME, PARTITION), (), (), {0: 1}, {}, {}, {})


def memory(*known: tuple[str, int], reader: str = "live", partitions: frozenset[int] | None = None) -> Memory:
    return Memory(reader, partitions, pl.DataFrame(list(known), {ID: pl.String, TIME: pl.Int64}, orient="row"))


EVENTS = st.lists(st.tuples(st.sampled_from(["a", "b", "c", None]), st.integers(0, 60)), max_size=25)
KNOWN = st.lists(st.tuples(st.sampled_from(["a", "b"]), st.integers(0, 60)), max_size=4)


@given(KNOWN, EVENTS)
def test_only_the_first_event_of_an_id_within_the_window_counts(
    known: list[tuple[str, int]], events: list[tuple[str | None, int]]
) -> None:
    counted, first = list(known), []
    for n, (id_, time) in enumerate(events):
        if id_ is None or not any(id_ == other and abs(time - at) <= WINDOW for other, at in counted):
            first.append(n)
            if id_ is not None:
                counted.append((id_, time))
    result = JUDGE.judge(batch(events), [memory(*known)])
    assert result.batch.frame[INDEX].to_list() == first
    assert sum(result.duplicates.values()) == len(events) - len(first)
    assert result.new["live"].select(ID, TIME).rows() == [events[n] for n in first if events[n][0] is not None]


def test_live_events_and_replays_have_separate_memories() -> None:
    """Only a partition that was handed over (here 1) counts for both."""
    events = [("a", 0), ("b", 0), ("c", 0), ("d", 0)]
    other = memory(("d", 5), reader="replay", partitions=frozenset({1}))
    result = JUDGE.judge(batch(events), [memory(("a", 5)), other])
    assert result.frame("live")["id"].to_list() == ["b", "c", "d"]
    assert result.frame("replay").filter(pl.col(PARTITION) == 1)["id"].to_list() == ["b"]
    assert result.new["replay"][ID].to_list() == ["b"]
    assert result.duplicates == {0: 1}


def test_duplicates_are_found_again_if_a_batch_is_cut() -> None:
    """The cut removes the first event, and the second event counts."""
    whole = batch([("a", 0), ("a", 1), ("a", 2)])
    part = replace(whole, frame=whole.frame[1:])
    assert JUDGE.judge(whole, [memory()]).cut(part).frame("live")[INDEX].to_list() == [1]


def test_long_ids_are_shortened_and_stay_different() -> None:
    ids = ["x" * LONGEST, "x" * (LONGEST + 1), "x" * 4000 + "a", "x" * 4000 + "b", "ø" * 40]
    stored = JUDGE.ids(batch([(id_, 0) for id_ in ids]).frame)[ID].to_list()
    assert stored[0] == ids[0]
    assert [len(text) for text in stored] == [LONGEST, *[LONGEST + 1] * 4]
    assert len(set(stored)) == len(ids)


def exploded(path: str) -> tuple[Batch, Judge]:
    spec = PipelineSpec.model_validate(
        {
            "source": {
                "fields": [
                    {"name": "id", "type": "integer", "path": path},
                    {"name": "ts", "type": "timestamp"},
                    {"name": "sku", "type": "string", "path": "items[].sku"},
                ],
                "eventTime": {"field": "ts"},
                "dedupe": {"field": "id", "window": "1h"},
            },
            "aggregations": [
                {
                    "name": "a",
                    "window": {"type": "tumbling", "size": "1h"},
                    "metrics": [{"name": "n", "function": "count"}],
                }
            ],
        }
    )
    at = 1_770_000_000_000
    order = {"id": 7, "ts": at, "items": [{"id": 1}, {"id": 1}, {"id": 2}]}
    other = {"id": 8, "ts": at, "items": [{"id": 2}, {"id": 3}]}
    field = spec.source.fields[0]
    return batch_reader(spec).read(records(order, order, other), NOW_MS), Judge("id", field.array is None, 3_600_000)


def test_elements_of_an_array_with_the_records_id_are_no_duplicates() -> None:
    """The index in the array is part of the identity."""
    events, judge = exploded("id")
    result = judge.judge(events, [memory()])
    assert result.frame("live")["id"].to_list() == [7, 7, 7, 8, 8]
    assert result.new["live"][ID].to_list() == ["0 7", "1 7", "2 7", "0 8", "1 8"]


def test_elements_with_equal_ids_are_duplicates_in_all_records() -> None:
    events, judge = exploded("items[].id")
    assert judge.judge(events, [memory()]).frame("live")["id"].to_list() == [1, 2, 3]
