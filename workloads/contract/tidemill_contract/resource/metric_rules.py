"""The rules of groups and metrics: fields, types of fields, and parameters of functions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tidemill_contract.decimals import base_type
from tidemill_contract.events.json_fields import JSON
from tidemill_contract.expressions import compiler as expressions
from tidemill_contract.functions.base import ALL_TYPES, STRINGS
from tidemill_contract.functions.composed import composed_type, is_composed, operands, operands_first
from tidemill_contract.functions.registry import FUNCTIONS, PARAMETERS, join_names
from tidemill_contract.resource.faults import Fault, did_you_mean
from tidemill_contract.resource.kinds.metrics import METRICS
from tidemill_contract.resource.parts import AggregationPart, Parts

_UNIVERSAL_FUNCTIONS = [
    name
    for name, function in FUNCTIONS.items()
    if set(function.field_types) >= set(ALL_TYPES)
    and not any(p.required for p in PARAMETERS.values() if name in p.functions)
]
"""The functions that take fields of every type and need no parameters."""


@dataclass(frozen=True)
class Columns:
    """The fields and derives of a document.

    Attributes:
        types: maps the name of each column to the column's type, or to None if the column has a fault.
        complete: whether the names of all columns could be read.
    """

    types: Mapping[str, str | None]
    complete: bool

    def unknown_fault(self, path: str, name: str, what: str = "field") -> Fault | None:
        """Return the fault for a reference to an unknown column."""
        if name in self.types or not self.complete:
            return None
        return Fault(path, name, f"there is no {what} of this name", did_you_mean(name, self.types))

    def grouping_fault(self, path: str, name: str) -> Fault | None:
        """Return a fault if events cannot be grouped by the column, because of its type."""
        kind = self.types.get(name)
        if kind not in (JSON, STRINGS):
            return None
        return Fault(
            path,
            name,
            f"is of type {kind}, by which events cannot be grouped",
            "group by a field that reads a part of this value",
        )


def expression_type(path: str, text: str, columns: Columns, *, as_filter: bool) -> tuple[str | None, Fault | None]:
    """Return the type or the fault of an expression. For an invalid column in the expression, return neither."""
    known_types = {name: kind for name, kind in columns.types.items() if kind is not None}
    try:
        used = expressions.column_names(text)
        if any(name not in known_types and (name in columns.types or not columns.complete) for name in used):
            return None, None  # another rule reports the invalid column or column name
        unusable = next((name for name in used if known_types.get(name) in (JSON, STRINGS)), None)
        if unusable is not None:
            remedy = "declare a field for a part of this value, and use the new field"
            message = f"{unusable} is of type {known_types[unusable]}, which expressions cannot use"
            return None, Fault(path, text, message, remedy)
        return expressions.check_type(text, known_types, as_filter=as_filter), None
    except expressions.ExpressionError as error:
        message, _, remedy = str(error).partition("; ")
        return None, Fault(path, text, message, remedy or "correct the expression")


def metric_faults(parts: Parts, columns: Columns, _limits: object) -> Iterator[Fault]:
    """Yield the faults of groups and metrics: unknown fields, wrong types and wrong parameters."""
    for aggregation in parts.aggregations:
        for path, name in aggregation.group_by:
            fault = columns.unknown_fault(path, name, "field or derive") or columns.grouping_fault(path, name)
            if fault:
                yield fault
        for metric in aggregation.metrics:
            if metric.model is not None:
                yield from _member_faults(metric.model, metric.path, columns)
        yield from answer_types(aggregation, columns)[1]


def answer_types(aggregation: AggregationPart, columns: Columns) -> tuple[dict[str, str | None], list[Fault]]:
    """Return the types of an aggregation's metrics by name, and the faults of metric expressions.

    The type is None for a metric with a fault.
    """
    models = {metric.name: metric.model for metric in aggregation.metrics if metric.name and metric.model is not None}
    types = {name: None if is_composed(model) else _answer_type(model, columns) for name, model in models.items()}
    faults = []
    for metric in aggregation.metrics:
        if metric.name not in models or not is_composed(models[metric.name]) or models[metric.name].expression is None:
            continue
        try:
            needed = operands_first(models, metric.name)
            unknown = {operand for name in needed for operand in operands(models[name])} - models.keys()
            if len(models) < len(aggregation.metrics) and unknown:
                continue  # the unknown operand may be an invalid metric, which another rule reports
            if any(types[name] is None for name in needed if not is_composed(models[name])):
                continue
            known_types = {name: kind for name, kind in types.items() if kind is not None}
            types[metric.name] = composed_type(models, known_types, metric.name)
        except expressions.ExpressionError as error:
            message, _, remedy = str(error).partition("; ")
            text = models[metric.name].expression
            faults.append(Fault(f"{metric.path}.expression", text, message, remedy or "correct the expression"))
    return types, faults


def _answer_type(metric: Any, columns: Columns) -> str | None:
    kind = columns.types.get(metric.field) if metric.field else None
    if metric.field and kind is None:
        return None
    return FUNCTIONS[metric.function].answer_type(kind)


def _member_faults(metric: Any, path: str, columns: Columns) -> Iterator[Fault]:
    members = dict(METRICS.members)
    field, function = members.pop("field"), metric.function
    for name, member in members.items():
        value, allowed_types = getattr(metric, name), PARAMETERS[name].field_types if name in PARAMETERS else None
        fault = METRICS.fault(metric, member, path)
        if fault:
            yield fault
        elif value is not None and allowed_types is not None:
            wording = f"{member.alias} of {function} is one of", "use another field or a derived field"
            yield from _column_faults(f"{path}.{member.alias}", value, columns, allowed_types, wording)
    fault = METRICS.fault(metric, field, path)
    if fault:
        yield fault
    elif metric.field is not None and not is_composed(metric):
        remedy = f"use {join_names(_UNIVERSAL_FUNCTIONS, 'or')}, or derive a number from the field"
        wording = f"{function} takes", remedy
        yield from _column_faults(f"{path}.field", metric.field, columns, FUNCTIONS[function].field_types, wording)
    if metric.where is not None and not is_composed(metric):
        _, fault = expression_type(f"{path}.where", metric.where, columns, as_filter=True)
        if fault:
            yield fault


def _column_faults(
    path: str, name: str, columns: Columns, allowed_types: Sequence[str], wording: tuple[str, str]
) -> Iterator[Fault]:
    fault = columns.unknown_fault(path, name, "field or derive")
    if fault:
        yield fault
    kind = columns.types.get(name)
    if kind is not None and base_type(kind) not in allowed_types:
        yield Fault(path, name, f"{wording[0]} {', '.join(allowed_types)}, not a {base_type(kind)}", wording[1])
