"""Tests of changed types: another type of a measured field begins another version of the aggregation."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any, get_args

import pytest

from drawn.metrics import parameters_for
from tidemill_contract.functions.registry import FUNCTIONS
from tidemill_contract.resource.spec import AnalyticsPipeline, FieldType
from tidemill_operator.plan.build import build_plan
from tidemill_operator.plan.changes import find_changes
from tidemill_operator.plan.live import LiveFacts, LiveSchema
from tidemill_operator.plan.model import Plan
from tidemill_operator.plan.postgres.migration import with_current_names, with_types_of
from tidemill_operator.plan.postgres.schema import column_type
from tidemill_operator.plan.versions import shape_changes
from tidemill_operator.settings import Platform

TYPES: tuple[str, ...] = get_args(FieldType)
PAIRS = [
    (function, before, after)
    for function in FUNCTIONS
    for before in FUNCTIONS[function].field_types
    for after in FUNCTIONS[function].field_types
]
SKETCHED = ("distinct", "topk", "variance", "count")


def document(functions: tuple[str, ...], kind: str, *, expression: str = "", **further: Any) -> dict[str, Any]:
    """Return a pipeline that measures `v`, a field or a derive. `further` has more members of the field."""
    fields = [{"name": "ts", "type": "timestamp", "required": True}]
    fields += [{"name": "other", "type": "integer"}]
    digits = {"scale": 2} if kind == "decimal" else {}
    fields += [{"name": "raw" if expression else "v", "type": kind, **digits, **further}]
    metrics: list[dict[str, Any]] = [{"name": "n", "function": "count"}]
    for function in functions:
        metrics.append({"name": f"m_{function}", "function": function, "field": "v"})
        metrics[-1] |= parameters_for(function, {"other": "integer"})
    return {
        "apiVersion": "tidemill.dev/v1alpha1",
        "kind": "AnalyticsPipeline",
        "metadata": {"name": "types", "namespace": "shop", "generation": 1},
        "spec": {
            "source": {"topic": {"partitions": 1}, "fields": fields, "eventTime": {"field": "ts"}},
            "transform": {"derive": [{"name": "v", "expression": expression}] if expression else []},
            "aggregations": [{"name": "a", "window": {"type": "tumbling", "size": "1h"}, "metrics": metrics}],
        },
    }


def planned(wanted: dict[str, Any], live: LiveSchema | None = None) -> Plan:
    return build_plan(AnalyticsPipeline.model_validate(wanted), Platform(), 1, LiveFacts(schema=live))


def applied(plan: Plan, before: LiveSchema | None = None) -> LiveSchema:
    """Return the schema after a plan was applied, which only adds columns."""
    earlier = before or LiveSchema()
    columns = {
        table.name: {c.name: column_type(c.definition) for c in table.columns}
        | dict(earlier.columns.get(table.name, {}))
        for table in plan.schema.tables
    }
    shapes = {(row.name, row.version): row for row in plan.schema.aggregations}
    type_changes = {key: with_types_of(row.shape, earlier.shapes.get(key)) for key, row in shapes.items()}
    return LiveSchema(
        shapes={**earlier.shapes, **type_changes}, columns=columns, accepted=json.loads(plan.schema.accepted)
    )


def of_an_earlier_version(live: LiveSchema) -> LiveSchema:
    """Return the schema as an earlier Tidemill stored it: without the types of fields."""
    shapes = {}
    for key, text in live.shapes.items():
        shapes[key] = json.dumps({name: value for name, value in json.loads(text).items() if name != "types"})
    return with_current_names(replace(live, shapes=shapes))


def version(plan: Plan) -> int:
    return plan.schema.aggregations[0].version


@pytest.mark.parametrize("convert", [lambda live: live, of_an_earlier_version], ids=["current", "earlier"])
@pytest.mark.parametrize(("function", "before", "after"), PAIRS)
def test_another_type_begins_another_version(function: str, before: str, after: str, convert: Any) -> None:
    live = applied(planned(document((function,), before)))
    if convert is of_an_earlier_version and any("." in column for column in live.columns["a_v1"]):
        return  # earlier versions had no columns of two fields
    live = convert(live)
    assert version(planned(document((function,), after), live)) == (1 if before == after else 2)


@pytest.mark.parametrize("convert", [lambda live: live, of_an_earlier_version], ids=["current", "earlier"])
def test_sketches_of_different_types_are_not_merged(convert: Any) -> None:
    """Integers and doubles have different hashes. A merged sketch would count 1 and 1.0 as two values."""
    live = convert(applied(planned(document(SKETCHED, "integer"))))
    plan = planned(document(SKETCHED, "number"), live)
    assert version(plan) == 2
    type_changes = [
        change for change in find_changes(plan, LiveFacts(schema=live), before=None, configs={}) if change.name == "a"
    ]
    assert ("field v", "integer", "number") in [(d.member, d.before, d.after) for d in type_changes[0].differences]


@pytest.mark.parametrize("convert", [lambda live: live, of_an_earlier_version], ids=["current", "earlier"])
def test_another_type_of_a_derive_begins_another_version(convert: Any) -> None:
    """The type changes with the expression or with the field that it reads."""
    live = convert(applied(planned(document(SKETCHED, "integer", expression="raw + 1"))))
    assert version(planned(document(SKETCHED, "integer", expression="raw + 2"), live)) == 1
    assert version(planned(document(SKETCHED, "integer", expression="raw + 1.5"), live)) == 2
    assert version(planned(document(SKETCHED, "number", expression="raw + 1"), live)) == 2


@pytest.mark.parametrize("function", ["sum", "min", "last", "count", "quantile", "topk"])
def test_another_scale_begins_another_version(function: str) -> None:
    """With another scale the same integers mean other values. The precision does not change stored values."""
    live = applied(planned(document((function,), "decimal")))
    assert version(planned(document((function,), "decimal", precision=9), live)) == 1
    assert version(planned(document((function,), "decimal", scale=3), live)) == 2
    assert version(planned(document((function,), "decimal", scale=0), live)) == 2
    type_changes = shape_changes(
        live.shapes["a", 1], applied(planned(document((function,), "decimal", scale=3))).shapes["a", 1]
    )
    assert list(type_changes) == [("field v", "decimal(2)", "decimal(3)")]


def test_another_scale_of_a_group_column_begins_another_version() -> None:
    wanted = [document(("sum",), "decimal", scale=scale) for scale in (2, 3)]
    for each in wanted:
        each["spec"]["aggregations"][0] |= {"groupBy": ["v"], "metrics": [{"name": "n", "function": "count"}]}
    live = applied(planned(wanted[0]))
    assert [version(planned(each, live)) for each in wanted] == [1, 2]


def test_another_scale_of_a_derive_begins_another_version() -> None:
    live = applied(planned(document(("sum",), "decimal", expression="raw * 2")))
    assert version(planned(document(("sum",), "decimal", expression="raw * 3"), live)) == 1
    assert version(planned(document(("sum",), "decimal", expression="raw * 1.5"), live)) == 2


def test_a_metric_added_again_with_another_type_begins_another_version() -> None:
    """The column of a removed metric is kept, with its type."""
    live = applied(planned(document(SKETCHED, "integer")))
    without = planned(document((), "integer"), live)
    live = applied(without, live)
    retyped = planned(document((), "number"), live)
    assert (version(without), version(retyped)) == (1, 1)
    live = applied(retyped, live)
    assert version(planned(document(SKETCHED, "integer"), live)) == 1
    assert version(planned(document(SKETCHED, "number"), live)) == 2
    assert version(planned(document(("max",), "number"), live)) == 1


def test_without_stored_types_the_types_of_columns_decide() -> None:
    """Schemas of early versions have no accepted spec."""
    live = replace(
        of_an_earlier_version(replace(applied(planned(document(("distinct",), "integer"))), accepted=None)),
        accepted=None,
    )
    assert version(planned(document(("distinct",), "number"), live)) == 1
    live = replace(
        of_an_earlier_version(replace(applied(planned(document(("sum",), "integer"))), accepted=None)), accepted=None
    )
    assert version(planned(document(("sum",), "number"), live)) == 2
