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
from tidemill_processor.merge.dedupe import ID, MAX_ID_BYTES, Deduplicator, StoredIds

WINDOW = 10
FINDER = Deduplicator("id", per_element=False, window_ms=WINDOW)


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


def stored_ids(*stored: tuple[str, int], reader: str = "live", partitions: frozenset[int] | None = None) -> StoredIds:
    return StoredIds(reader, partitions, pl.DataFrame(list(stored), {ID: pl.String, TIME: pl.Int64}, orient="row"))


EVENTS = st.lists(st.tuples(st.sampled_from(["a", "b", "c", None]), st.integers(0, 60)), max_size=25)
STORED = st.lists(st.tuples(st.sampled_from(["a", "b"]), st.integers(0, 60)), max_size=4)


@given(STORED, EVENTS)
def test_only_the_first_event_of_an_id_within_the_window_counts(
    stored: list[tuple[str, int]], events: list[tuple[str | None, int]]
) -> None:
    counted, first = list(stored), []
    for n, (id_, time) in enumerate(events):
        if id_ is None or not any(id_ == other and abs(time - at) <= WINDOW for other, at in counted):
            first.append(n)
            if id_ is not None:
                counted.append((id_, time))
    result = FINDER.drop_duplicates(batch(events), [stored_ids(*stored)])
    assert result.batch.frame[INDEX].to_list() == first
    assert sum(result.duplicates.values()) == len(events) - len(first)
    assert result.new_ids["live"].select(ID, TIME).rows() == [events[n] for n in first if events[n][0] is not None]


def test_live_events_and_replays_have_separate_ids() -> None:
    """Only a partition that was handed over (here 1) counts for both."""
    events = [("a", 0), ("b", 0), ("c", 0), ("d", 0)]
    other = stored_ids(("d", 5), reader="replay", partitions=frozenset({1}))
    result = FINDER.drop_duplicates(batch(events), [stored_ids(("a", 5)), other])
    assert result.frame("live")["id"].to_list() == ["b", "c", "d"]
    assert result.frame("replay").filter(pl.col(PARTITION) == 1)["id"].to_list() == ["b"]
    assert result.new_ids["replay"][ID].to_list() == ["b"]
    assert result.duplicates == {0: 1}


def test_duplicates_are_found_again_if_a_batch_is_cut() -> None:
    """The cut removes the first event, and the second event counts."""
    whole = batch([("a", 0), ("a", 1), ("a", 2)])
    part = replace(whole, frame=whole.frame[1:])
    assert FINDER.drop_duplicates(whole, [stored_ids()]).for_part(part).frame("live")[INDEX].to_list() == [1]


def test_long_ids_are_shortened_and_stay_different() -> None:
    ids = ["x" * MAX_ID_BYTES, "x" * (MAX_ID_BYTES + 1), "x" * 4000 + "a", "x" * 4000 + "b", "ø" * 40]
    stored = FINDER.ids(batch([(id_, 0) for id_ in ids]).frame)[ID].to_list()
    assert stored[0] == ids[0]
    assert [len(text) for text in stored] == [MAX_ID_BYTES, *[MAX_ID_BYTES + 1] * 4]
    assert len(set(stored)) == len(ids)


def exploded(path: str) -> tuple[Batch, Deduplicator]:
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
    return batch_reader(spec).read(records(order, order, other), NOW_MS), Deduplicator(
        "id", field.array is None, 3_600_000
    )


def test_elements_of_an_array_with_the_records_id_are_no_duplicates() -> None:
    """The index in the array is part of the identity."""
    events, finder = exploded("id")
    result = finder.drop_duplicates(events, [stored_ids()])
    assert result.frame("live")["id"].to_list() == [7, 7, 7, 8, 8]
    assert result.new_ids["live"][ID].to_list() == ["0 7", "1 7", "2 7", "0 8", "1 8"]


def test_elements_with_equal_ids_are_duplicates_in_all_records() -> None:
    events, finder = exploded("items[].id")
    assert finder.drop_duplicates(events, [stored_ids()]).frame("live")["id"].to_list() == [1, 2, 3]
