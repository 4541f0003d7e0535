"""Tests of metrics with a condition (`where`): their columns, and the events that they count."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pytest

from drawn.metrics import functions_for, parameters_for
from kafka_records import KafkaRecord
from oracle.cells import metric_cell
from tidemill_contract.expressions.compiler import derived_types
from tidemill_contract.expressions.normal_form import normal_form
from tidemill_contract.functions.partials import build_layout, field_types, needed_columns
from tidemill_contract.functions.registry import FUNCTIONS
from tidemill_contract.resource.spec import PipelineSpec
from tidemill_processor.batches.reader import BatchReader
from tidemill_processor.merge.aggregate import aggregate
from tidemill_processor.merge.sessions import aggregate_sessions

NOW = 1_795_800_000_000
TYPES = {"v": "number", "w": "integer", "ok": "boolean", "s": "string", "t": "timestamp"}


@dataclass(frozen=True)
class Record(KafkaRecord):
    """An event with an offset."""

    o: int
    members: dict[str, Any]
    p: int = 0

    def value(self) -> bytes:
        return json.dumps({"ts": NOW - 60_000 + self.o, **self.members}).encode()


def spec(*metrics: dict[str, Any], window: dict[str, str] | None = None, **transform: Any) -> PipelineSpec:
    fields = [{"name": "ts", "type": "timestamp"}, *({"name": name, "type": kind} for name, kind in TYPES.items())]
    cut = window or {"type": "tumbling", "size": "1d"}
    aggregation = {"name": "a", "window": cut, "metrics": list(metrics)}
    return PipelineSpec.model_validate(
        {
            "source": {"fields": fields, "eventTime": {"field": "ts"}},
            "transform": transform,
            "aggregations": [aggregation],
        }
    )


def row(pipeline: PipelineSpec, *events: dict[str, Any]) -> dict[str, Any]:
    frame = BatchReader(pipeline).read([Record(n, event) for n, event in enumerate(events)], NOW).frame
    layout = build_layout(pipeline.aggregations[0], field_types(pipeline, derived_types(pipeline)))
    if layout.has_sessions:
        rows = aggregate_sessions(frame, layout, closed_until=None, epochs={}, check_sessions=lambda doubt: doubt).rows
    else:
        rows = aggregate(frame, layout, closed_until=None, epochs={0: 0}).rows
    return rows.row(0, named=True)


def metric(function: str, **members: Any) -> dict[str, Any]:
    return {"name": "m", "function": function, **members}


EVENTS = (
    {"v": 5.0, "w": 3, "ok": True, "s": "a"},
    {"v": 1.5, "w": 3, "ok": False, "s": "b"},
    {"v": None, "w": 1, "ok": True, "s": "a"},
    {"v": -0.5, "w": 2**62, "ok": None, "s": None},
    {"v": 7.0, "w": 2**62, "ok": True, "s": "c"},
)


@pytest.mark.parametrize("window", [{"type": "tumbling", "size": "1d"}, {"type": "session", "gap": "1m"}])
@pytest.mark.parametrize("function", FUNCTIONS)
def test_every_function_counts_only_events_for_which_the_condition_is_true(
    function: str, window: dict[str, str]
) -> None:
    """The columns hold the same values as without a condition over only these events."""
    chosen = [event for event in EVENTS if event["ok"] is True]
    kind = next(kind for kind in ("number", "string") if function in functions_for(kind))
    field = next(name for name, kind_of_field in TYPES.items() if kind_of_field == kind)
    plain = metric(function, field=field, **parameters_for(function, {"w": "integer"}))
    wanted = spec(plain | {"where": "ok"}, window=window)
    actual, expected = row(wanted, *EVENTS), row(spec(plain, window=window), *chosen)
    columns = needed_columns(wanted.aggregations[0].metrics[0])
    others = needed_columns(spec(plain).aggregations[0].metrics[0])
    pairs = list(zip(columns, others, strict=True))
    assert pairs
    # The offset of an event differs between all events and the chosen events.
    assert [actual[a] for a, b in pairs if "_at" not in b] == [expected[b] for _, b in pairs if "_at" not in b]


def test_a_count_is_zero_if_no_event_fulfils_the_condition() -> None:
    (column,) = needed_columns(spec(metric("count", where="w > 5")).aggregations[0].metrics[0])
    assert row(spec(metric("count", where="w > 5")), {"w": 1}, {"w": None})[column] == 0
    assert row(spec(metric("count", where="w > 5")), {"w": 6}, {"w": None})[column] == 1
    assert row(spec(metric("count", where="w > 5")), {"w": 6}, {"w": None})["_count"] == 2


def test_equal_conditions_share_a_column() -> None:
    """White space, parentheses and letter case make no difference. Another condition, field or function does."""
    same = ["w>=5", "(W >= 5)", "w >= (5)"]
    wanted = [metric("sum", field="v", where=text) | {"name": f"m{n}"} for n, text in enumerate(same)]
    layout = build_layout(spec(*wanted).aggregations[0], TYPES)
    assert len(layout.partials) == 2
    others = [metric("sum", field="v"), metric("sum", field="v", where="w > 5"), metric("sum", field="w", where="w>=5")]
    layout = build_layout(spec(*wanted, *({**m, "name": f"x{n}"} for n, m in enumerate(others))).aggregations[0], TYPES)
    assert len(layout.partials) == len({p.column for p in layout.partials}) == 5


def test_the_names_of_columns_with_conditions_do_not_change_between_versions() -> None:
    """The name is derived from the condition. With another name, stored values would be lost."""
    text = "status >= 500 AND NOT (path LIKE '/a''%' OR flag IS NULL) OR CASE WHEN x THEN 1.5 ELSE NULL END > -1"
    assert normal_form(text) == (
        'OR(AND(>=("status",500),NOT(OR(LIKE("path",\'/a\'\'%\'),IS NULL("flag")))),>(CASE("x":1.5;NULL),-1))'
    )
    types = {"status": "integer"}
    named = [metric("count", where="status >= 500"), metric("max", field="status", where="status >= 500")]
    model = spec(*({**m, "name": f"m{n}"} for n, m in enumerate(named))).aggregations[0]
    assert [p.column for p in build_layout(model, types).partials] == [
        "_count", "_count_.e19f046bfb2fc38b", "_max_status.f072cd04fd15231a",
    ]  # fmt: skip


def test_a_condition_may_read_fields_and_derives_that_nothing_else_reads() -> None:
    pipeline = spec(metric("count", where="large AND s = 'a'"), derive=[{"name": "large", "expression": "v > 2"}])
    (column,) = needed_columns(pipeline.aggregations[0].metrics[0])
    assert row(pipeline, *EVENTS)[column] == 1
    plain = spec(metric("count", where="s = 'a'"))
    assert row(plain, *EVENTS)[needed_columns(plain.aggregations[0].metrics[0])[0]] == 2


def test_frames_have_additional_columns_only_for_conditions() -> None:
    frame = BatchReader(spec(metric("sum", field="v"))).read([Record(0, {"v": 1.0})], NOW).frame
    assert [name for name in frame.columns if not name.startswith("_")] == ["v"]
    metrics = [metric("sum", field="v", where="w > 1"), metric("avg", field="v", where="w > 1") | {"name": "x"}]
    frame = BatchReader(spec(*metrics)).read([Record(0, {"v": 1.0})], NOW).frame
    assert len([name for name in frame.columns if "?" in name]) == 2, (
        "there must be a column of the condition, and a column of the field"
    )


def test_the_model_of_the_tests_applies_conditions() -> None:
    wanted = metric("sum", field="w", where="w < 10 AND ok")
    assert metric_cell(wanted, TYPES, EVENTS, 1000).fits(4)
