"""Tests of metrics by expression: types, operands, refused expressions, and the absence of stored columns."""

from __future__ import annotations

from typing import Any

import pytest

from tidemill_contract.functions.composed import function_operands, operands_first
from tidemill_contract.functions.fill_history import FillHistory, FillPeriods, mask_incomplete_metrics
from tidemill_contract.functions.partials import build_layout, fields_of, needed_columns, needs_event_order
from tidemill_contract.resource.kinds.metrics import METRICS, ExpressionMetric
from tidemill_contract.resource.spec import AggregationSpec
from tidemill_contract.resource.validate import check_document
from tidemill_contract.windows import answer_columns, answer_range, decoders

TYPES = {"v": "number", "w": "integer", "s": "string"}
ORDERS = {"name": "orders", "function": "count"}
REVENUE = {"name": "revenue", "function": "sum", "field": "v"}
ITEMS = {"name": "items", "function": "sum", "field": "w"}
BASKET = {"name": "basket", "expression": "revenue / orders"}


def aggregation(*metrics: dict[str, Any]) -> AggregationSpec:
    window = {"type": "hopping", "size": "3m", "hop": "1m"}
    return AggregationSpec.model_validate({"name": "a", "window": window, "metrics": list(metrics)})


def faults(*metrics: dict[str, Any], **spec: Any) -> list[str]:
    fields = [{"name": name, "type": kind} for name, kind in TYPES.items()]
    window = {"type": "tumbling", "size": "1m"}
    document = {
        "apiVersion": "tidemill.dev/v1alpha1",
        "kind": "AnalyticsPipeline",
        "metadata": {"name": "orders", "namespace": "shop"},
        "spec": {
            "source": {"fields": fields},
            "aggregations": [{"name": "a", "window": window, "metrics": list(metrics)}],
            **spec,
        },
    }
    return [str(fault).removeprefix("spec.aggregations[0].metrics") for fault in check_document(document)[1]]


def test_a_metric_by_expression_is_parsed_and_dumped_without_a_function() -> None:
    metric = METRICS.make(**BASKET)
    assert type(metric) is ExpressionMetric
    assert (metric.field, metric.where) == (None, None)
    assert metric.model_dump(by_alias=True, exclude_unset=True) == BASKET
    assert METRICS.make(**metric.model_dump()) == metric


def test_a_metric_by_expression_has_no_columns_and_reads_no_fields() -> None:
    layout = build_layout(aggregation(BASKET, ORDERS, REVENUE), TYPES)
    assert [p.column for p in layout.partials] == ["_count", "_sum_v"]
    metric = layout.metrics[0][0]
    assert (needed_columns(metric), fields_of(metric), needs_event_order(metric)) == ([], set(), False)
    assert decoders(layout) == {}
    assert answer_range(*layout.metrics[0])[0] == float("-inf")


@pytest.mark.parametrize(
    ("expression", "kind"),
    [
        ("revenue / orders", "number"),
        ("items + orders", "integer"),
        ("items / orders", "number"),
        ("revenue > 2 * orders", "boolean"),
        ("CASE WHEN orders > 5 THEN 'many' ELSE 'few' END", "string"),
        ("COALESCE(items, 0)", "integer"),
        ("GREATEST(items, revenue)", "number"),
    ],
)
def test_the_type_of_the_metric_is_the_type_of_the_expression(expression: str, kind: str) -> None:
    layout = build_layout(aggregation({"name": "x", "expression": expression}, ORDERS, REVENUE, ITEMS), TYPES)
    (name, actual, _), *_ = answer_columns(layout)
    assert (name, actual) == ("x", kind)


def test_the_sql_of_nested_expressions_grows_linearly() -> None:
    """Each expression is computed once. If operands were repeated, the SQL would have a million terms."""
    chain = [{"name": f"x{n}", "expression": f"x{n - 1} * x{n - 1}" if n else "revenue"} for n in range(20, -1, -1)]
    layout = build_layout(aggregation(REVENUE, *chain), TYPES)
    texts = {name: sql for name, _, sql in answer_columns(layout)}
    assert len(texts["x20"]) < 40_000
    assert operands_first({m.name: m for m, _ in layout.metrics}, "x2") == ["revenue", "x0", "x1", "x2"]


def test_a_metric_is_null_in_windows_for_which_an_operand_lacks_events() -> None:
    """The expression itself may have another result for null."""
    total = {"name": "total", "expression": "COALESCE(basket, 0)"}
    layout = build_layout(aggregation(total, BASKET, ORDERS, REVENUE), TYPES)
    masked = mask_incomplete_metrics(layout, FillHistory(1, {"_sum_v": FillPeriods(1)}))
    assert dict(masked.completeness) == dict.fromkeys(("total", "basket", "revenue"), "(_since >= 1)")
    assert [m.name for m in function_operands([m for m, _ in layout.metrics], "total")] == ["orders", "revenue"]
    assert '"_whole_total"' in answer_columns(masked)[0][2]


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        (
            {"expression": "revenue / order"},
            "[2].expression: unknown metric 'order' (got \"revenue / order\"); did you mean",
        ),
        ({"expression": "v / orders"}, "[2].expression: unknown metric 'v'"),
        ({"expression": "x + 1"}, "[2].expression: the metric is computed from itself (x → x)"),
        ({"expression": "1 + 2"}, "[2].expression: names no metric"),
        ({"expression": "orders >"}, "[2].expression: "),
        ({"expression": "POW(orders, 2)"}, "[2].expression: metrics cannot be combined with POW"),
        ({"expression": "revenue + 'a'"}, "[2].expression: '+' takes numbers, not a string"),
        ({"expression": "NULL"}, "[2].expression: names no metric"),
        ({}, "[2].expression: a metric needs a function or an expression; add a function"),
        ({"expression": "orders", "where": "v > 1"}, "[2].where: a metric without a function takes no where"),
        ({"expression": "orders", "field": "v"}, "[2].field: a metric without a function takes no field"),
        ({"expression": "orders", "function": "sum", "field": "v"}, "[2].expression: sum takes no expression"),
    ],
)
def test_an_invalid_expression_is_refused_with_field_and_remedy(metric: dict[str, Any], message: str) -> None:
    (fault,) = faults(ORDERS, REVENUE, {"name": "x", **metric})
    assert fault.startswith(message)
    assert "; " in fault


def test_expressions_that_need_each_other_are_refused() -> None:
    pair = [{"name": "x", "expression": "y + orders"}, {"name": "y", "expression": "x - 1"}]
    assert [fault.partition(" (got")[0] for fault in faults(ORDERS, *pair)] == [
        "[1].expression: the metric is computed from itself (x → y → x)",
        "[2].expression: the metric is computed from itself (y → x → y)",
    ]


@pytest.mark.parametrize("metric", [{"function": "distinct"}, {"function": "topk"}, {"function": "quantile", "q": 0.5}])
def test_metrics_that_are_decoded_after_the_query_are_refused_as_operands(metric: dict[str, Any]) -> None:
    (fault,) = faults(ORDERS, {"name": "d", "field": "v", **metric}, {"name": "x", "expression": "orders / d"})
    assert fault.startswith(f"[2].expression: metric d ({metric['function']}) cannot be used in an expression")


def test_an_error_of_an_operand_is_reported_once() -> None:
    (fault,) = faults(
        ORDERS, {"name": "t", "function": "sum", "field": "none"}, {"name": "x", "expression": "t / orders"}
    )
    assert fault.startswith("[1].field: ")
    (fault,) = faults(ORDERS, {"name": "T"}, {"name": "x", "expression": "t / orders"})
    assert fault.startswith("[1].name: ")


def test_an_anomaly_rule_may_watch_only_expressions_that_are_numbers() -> None:
    rule = {"name": "r", "aggregation": "a", "metric": "x"}
    assert faults(ORDERS, REVENUE, {"name": "x", "expression": "revenue / orders"}, anomalies=[rule]) == []
    (fault,) = faults(ORDERS, REVENUE, {"name": "x", "expression": "revenue > orders"}, anomalies=[rule])
    assert fault.startswith("spec.anomalies[0].metric: the metric is of type boolean, not a number")
