"""Tests of drafts from events in an envelope, and of notes about left out fields."""

from __future__ import annotations

from typing import Any

import pytest

from tidemill_contract.resource.documents import load_documents
from tidemill_contract.resource.validate import check_document
from tidemill_operator.inference.columns import collect
from tidemill_operator.inference.document import NothingFound, Origin, draft
from tidemill_operator.inference.envelopes import unwrap_events

NOW_MS = 1_796_000_000_000
"""A time in November 2026."""
ROW = {"id": 1, "amount": 2.5, "at": "2026-11-01T10:00:00Z"}
CHANGE = {"op": "c", "before": None, "after": ROW, "source": {"table": "t"}}


def test_left_out_fields_and_events_are_noted_with_the_reason() -> None:
    """Fields beyond the maximum and events without the envelope are left out."""
    text = draft(collect([{f"m{n}": n for n in range(123)}]), Origin("a", "NDJSON", "a", "UTC"), NOW_MS)
    assert "# Left out, because a draft has at most 100 fields: m100, m101" in text
    assert "m119 and 3 more\n" in text
    envelope, rows = unwrap_events([CHANGE] * 49 + [ROW])
    text = draft(collect(rows), Origin("a", "NDJSON", "a", "UTC", envelope=envelope), NOW_MS)
    assert "# 1 lines are not JSON objects in the envelope debezium: they become dead letters." in text
    envelope, rows = unwrap_events([{"op": "d", "before": ROW, "after": None}] * 3)
    with pytest.raises(NothingFound, match=r"a has no event in the envelope debezium \(deletes are none\); name"):
        draft(collect(rows), Origin("a", "NDJSON", "a", "UTC", envelope=envelope), NOW_MS)


def test_tombstones_of_kafka_connect_are_no_events() -> None:
    envelope, rows = unwrap_events([{"schema": {}, "payload": ROW}, {"schema": None, "payload": None}] * 5)
    assert (envelope, list(rows)) == ("connect", [ROW] * 5)


@pytest.mark.parametrize(
    ("envelope", "event"),
    [
        ("none", ROW),
        ("none", ROW | {"op": "c", "after": "x"}),
        ("debezium", CHANGE),
        ("debezium", {"schema": {}, "payload": CHANGE}),
        ("connect", {"schema": {}, "payload": ROW}),
        ("cloudevents", {"specversion": "1.0", "id": "1", "data": ROW}),
    ],
)
def test_fields_are_those_of_the_event_in_the_envelope(envelope: str, event: Any) -> None:
    deletes = [{"op": "d", "before": ROW, "after": None}] if envelope == "debezium" else []
    envelope_found, rows = unwrap_events([event] * 20 + deletes)
    origin = Origin("a", "NDJSON", "a", "UTC", envelope=envelope_found)
    (document,) = load_documents(draft(collect(rows), origin, NOW_MS))
    assert check_document(document)[1] == []
    assert [field["name"] for field in document["spec"]["source"]["fields"]][:3] == ["id", "amount", "at"]
    assert document["spec"]["source"].get("format", {"envelope": "none"}) == {"envelope": envelope}
