"""Metrics with an `expression`, which are computed from other metrics of the aggregation and store nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from tidemill_contract.expressions.compiler import column_names
from tidemill_contract.expressions.sql import Value, compile_sql
from tidemill_contract.expressions.syntax import ExpressionError
from tidemill_contract.functions.base import Function, Metric
from tidemill_contract.functions.registry import FUNCTIONS

EXPRESSION = "expression"
"""The value of `function` in a metric that has an expression and no function."""


def is_composed(metric: Metric) -> bool:
    """Return whether a metric is computed from other metrics."""
    return metric.function == EXPRESSION


def operands(metric: Metric) -> frozenset[str]:
    """Return the names of the metrics in a metric's expression. For a metric with a function, return an empty set."""
    text = getattr(metric, EXPRESSION) if is_composed(metric) else None
    return column_names(text) if text else frozenset()


def operands_first(metrics: Mapping[str, Metric], name: str) -> list[str]:
    """Return the names of a metric and of all its direct and indirect operands, with operands first.

    Raises:
        ExpressionError: a metric is computed from itself.
    """
    ordered: dict[str, None] = {}
    _visit(metrics, name, (), ordered)
    return list(ordered)


def _visit(metrics: Mapping[str, Metric], name: str, path: tuple[str, ...], ordered: dict[str, None]) -> None:
    if name in path:
        circle = " → ".join([*path[path.index(name) :], name])
        raise ExpressionError(f"the metric is computed from itself ({circle}); remove one of these references")
    if name in ordered or name not in metrics:
        return  # `compile_sql` reports unknown metrics
    for operand in sorted(operands(metrics[name])):
        _visit(metrics, operand, (*path, name), ordered)
    ordered[name] = None


def composed_type(metrics: Mapping[str, Metric], types: Mapping[str, str], name: str) -> str:
    """Return the spec type of a metric with an expression, or raise ExpressionError.

    For each metric that has a function, `types` maps the name to the result type.
    """
    kinds = dict(types)
    for needed in operands_first(metrics, name):
        if is_composed(metrics[needed]):
            kinds[needed] = _compile_metric(metrics, metrics[needed], kinds).kind
    return kinds[name]


def composed_sql(metrics: Mapping[str, Metric], answers: Mapping[str, tuple[str, str]], name: str) -> str:
    """Return the SQL of a metric with an expression: a subselect that computes every operand once.

    `answers` contains the result type and the SQL of each metric that has a function.
    """
    kinds = {needed: kind for needed, (kind, _) in answers.items()}
    order = operands_first(metrics, name)
    select_list = ", ".join(f'{answers[needed][1]} AS "{needed}"' for needed in order if needed in answers)
    rows = f"(SELECT {select_list or 'NULL'} OFFSET 0) AS v"
    for needed in (needed for needed in order if is_composed(metrics[needed])):
        value = _compile_metric(metrics, metrics[needed], kinds)
        kinds[needed] = value.kind
        if needed == name:
            return f"(SELECT {value.sql} FROM {rows})"
        rows = f'(SELECT v.*, {value.sql} AS "{needed}" FROM {rows} OFFSET 0) AS v'
    raise KeyError(name)


def _compile_metric(metrics: Mapping[str, Metric], metric: Metric, kinds: Mapping[str, str]) -> Value:
    needed = operands(metric)
    if not needed:
        raise ExpressionError("names no metric; combine metrics of the aggregation, such as revenue / orders")
    for name in sorted(needed):
        _check_operand(metrics, name)
    operand_values = {name: _operand(name, kind) for name, kind in kinds.items()}
    return compile_sql(str(getattr(metric, EXPRESSION)), operand_values)


def _check_operand(metrics: Mapping[str, Metric], name: str) -> None:
    metric = metrics.get(name)
    if metric is None or is_composed(metric):
        return
    if type(FUNCTIONS[metric.function]).decoder is not Function.decoder:
        raise ExpressionError(
            f"metric {name} ({metric.function}) cannot be used in an expression: SQL does not compute its result; use"
            " metrics with other functions"
        )


def _operand(name: str, kind: str) -> Value:
    return Value(kind, f'v."{name}"::numeric' if kind == "integer" else f'v."{name}"', simple=True)


def function_operands(metrics: Sequence[Metric], name: str) -> Iterator[Metric]:
    """Yield the direct and indirect operands that have a function.

    For a metric with a function, yield only the metric itself.
    """
    by_name = {metric.name: metric for metric in metrics}
    for needed in operands_first(by_name, name):
        if not is_composed(by_name[needed]):
            yield by_name[needed]
