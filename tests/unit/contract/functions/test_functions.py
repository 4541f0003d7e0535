"""Tests of the registry of aggregate functions: rules for every function, and functions with parameters."""

from __future__ import annotations

import itertools
from typing import Any

import polars as pl
import pytest

from drawn.metrics import parameters_for
from kafka_records import KafkaRecord
from oracle.cells import columns_of, metric_cell
from tidemill_contract.expressions.compiler import derived_types
from tidemill_contract.functions.base import ALL_TYPES, ALL_TYPES_AND_STRINGS, Function
from tidemill_contract.functions.partials import build_layout, field_types
from tidemill_contract.functions.registry import FUNCTIONS, KINDS, PARAMETERS
from tidemill_contract.resource.kinds.metrics import METRICS
from tidemill_contract.resource.spec import PipelineSpec
from tidemill_contract.windows import answer_columns, answer_range, find_decoder
from tidemill_processor.batches.reader import BatchReader
from tidemill_processor.merge import aggregate

TYPES = {"v": "number", "w": "integer"}
NOW = 1_795_800_000_000
# These kinds are filled for each row, not by an expression over a field.
ROWS = {"count", "revision", "whole"}


class Record(KafkaRecord):
    """An event with an offset. `w` is compared, and is equal in the first two events."""

    p = 0

    def __init__(self, o: int, members: str) -> None:
        self.o, self._members = o, members

    def value(self) -> bytes:
        return self._members.encode()


def metric(function: str, field: str | None = "v") -> dict[str, Any]:
    members = {"name": "m", "function": function, "field": field, **parameters_for(function, {"w": "integer"})}
    return {name: value for name, value in members.items() if value is not None}


def spec(*metrics: dict[str, Any]) -> PipelineSpec:
    fields = [{"name": "ts", "type": "timestamp"}, *({"name": name, "type": kind} for name, kind in TYPES.items())]
    aggregation = {"name": "a", "window": {"type": "tumbling", "size": "1m"}, "metrics": list(metrics)}
    return PipelineSpec.model_validate(
        {"source": {"fields": fields, "eventTime": {"field": "ts"}}, "aggregations": [aggregation]}
    )


def rows(pipeline: PipelineSpec, *members: str) -> pl.DataFrame:
    frame = BatchReader(pipeline).read([Record(n, text) for n, text in enumerate(members)], NOW).frame
    layout = build_layout(pipeline.aggregations[0], field_types(pipeline, derived_types(pipeline)))
    return aggregate.aggregate(frame, layout, closed_until=None, epochs={0: 0}).rows


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=list(FUNCTIONS))
def test_every_function_has_documentation_parameters_columns_and_an_answer(function: Function) -> None:
    assert function.description
    assert function.accuracy
    assert set(function.field_types) <= set(ALL_TYPES_AND_STRINGS)
    arguments = metric(function.name)
    METRICS.make(**arguments)
    parameters = [p for p in PARAMETERS.values() if function.name in p.functions]
    assert {p.alias for p in parameters if p.required} <= set(arguments)
    for kind in function.field_types:
        low, high = answer_range(METRICS.make(**arguments), kind)
        assert low < high
    layout = build_layout(spec(arguments).aggregations[0], TYPES)
    ((_, answered, sql),) = answer_columns(layout)
    assert answered in (*ALL_TYPES, "array")
    assert {need.kind.name for need in function.needs(METRICS.make(**arguments))} <= set(KINDS)
    assert all(p.quoted in sql or len(layout.partials) > 2 for p in layout.partials[1:])
    assert columns_of(arguments), "the model of the tests must implement the function"


def test_processors_fill_every_kind_of_column() -> None:
    assert set(KINDS) - ROWS == set(aggregate._EXPRESSIONS)


EVENTS = (
    '{"ts": "2026-11-27T10:00:00.5Z", "v": 5.0, "w": 3}',
    '{"ts": "2026-11-27T10:00:00.1Z", "v": 1.5, "w": 3}',
    '{"ts": "2026-11-27T10:00:01Z", "v": null, "w": 1}',
    '{"ts": "2026-11-27T10:00:02Z", "v": -0.5, "w": null}',
    '{"ts": "2026-11-27T10:00:03Z", "v": 7.0, "w": 9}',
)


def test_min_by_and_max_by_take_the_value_of_the_earliest_event() -> None:
    """Events without a value in either field are skipped. All columns are of the same event."""
    (row,) = rows(spec(metric("min_by"), metric("max_by") | {"name": "x"}), *EVENTS).rows(named=True)
    place = 1_795_773_600_000
    assert {name: value for name, value in row.items() if "." in name} == {
        "_lowest_v.w": 1.5, "_key_lowest_v.w": 3, "_at_lowest_v.w": f"{{{place + 100},0,0,0,1}}",
        "_highest_v.w": 7.0, "_key_highest_v.w": 9, "_at_highest_v.w": f"{{{place + 3000},0,0,0,4}}",
    }  # fmt: skip


def test_a_histogram_counts_values_from_each_bound_to_the_next() -> None:
    wanted = metric("histogram") | {"bounds": [-0.5, 1.5, 6]}
    (row,) = rows(spec(wanted), *EVENTS).rows(named=True)
    (counts,) = (value for name, value in row.items() if name.startswith("_histogram_v."))
    assert counts == "{0,1,2,1}"
    decode = find_decoder(METRICS.make(**wanted), "number")
    assert decode is not None
    assert decode(None) is None
    assert metric_cell(wanted, TYPES, [{"v": v} for v in (5.0, 1.5, -0.5, 7.0)], 60_000).fits(decode([0, 1, 2, 1]))


def test_a_histogram_of_integers_beyond_doubles_is_exact() -> None:
    """2^54 + 3 is less than 2^54 + 4, but both are the same double."""
    wanted = metric("histogram", "w") | {"bounds": [-1e300, float(2**54 + 4), 1e300]}
    (row,) = rows(spec(wanted), f'{{"ts": "2026-11-27T10:00:00Z", "w": {2**54 + 3}}}').rows(named=True)
    assert [value for name, value in row.items() if name.startswith("_histogram")] == ["{0,1,0,0}"]


def test_metrics_of_fields_with_long_names_have_different_columns() -> None:
    """Postgres allows 63 bytes. A digest replaces the end of longer names."""
    long = ["x" * 40 + "a", "x" * 40 + "b"]
    wanted = [
        {"name": f"m{n}", "function": function, "field": field, "by": by}
        for n, (function, field, by) in enumerate(itertools.product(("min_by", "max_by"), long, long))
    ]
    aggregation = PipelineSpec.model_validate(
        {
            "source": {"fields": [{"name": name, "type": "integer"} for name in long]},
            "aggregations": [{"name": "a", "window": {"type": "tumbling", "size": "1m"}, "metrics": wanted}],
        }
    ).aggregations[0]
    columns = [p.column for p in build_layout(aggregation, dict.fromkeys(long, "integer")).partials]
    assert len(set(columns)) == 1 + 3 * len(wanted)
    assert max(map(len, columns)) <= 63


@pytest.mark.parametrize("bounds", [[1, 1], [2, 1], [], [0] * 65, [True], ["1"], [float("nan"), 1]])
def test_bounds_that_do_not_ascend_or_are_too_many_are_refused(bounds: list[Any]) -> None:
    with pytest.raises(ValueError):
        METRICS.make(**{"name": "m", "function": "histogram", "field": "v", "bounds": bounds})
