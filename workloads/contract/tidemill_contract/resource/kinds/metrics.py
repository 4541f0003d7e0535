"""The metrics of the spec. Each function of the registry has a class, and expressions have one class."""

from __future__ import annotations

from copy import copy
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, create_model
from pydantic.fields import FieldInfo

from tidemill_contract.functions.base import Expression, Function, Name
from tidemill_contract.functions.registry import FIELD_OPTIONAL, FUNCTIONS, PARAMETERS, join_names
from tidemill_contract.resource.kinds.base import FaultTexts, Kinds, Member, Model, type_of

_FIELD = f"Field or derive that the function aggregates. {join_names(FIELD_OPTIONAL)} can be used without a field."


class MetricSpec(Model):
    """A value that is computed for each group and window."""

    name: Name = Field(description="Name of the metric in query results.")
    function: str
    if TYPE_CHECKING:
        field: str | None
        where: str | None


class FunctionMetric(MetricSpec):
    """A metric that an aggregate function computes."""

    field: Name | None = Field(None, description=_FIELD)
    where: Expression | None = Field(
        None,
        description="SQL condition. The metric uses only events that fulfil the condition. Default: all events.",
    )


class ExpressionMetric(MetricSpec):
    """A metric computed from other metrics of the aggregation."""

    field: ClassVar[None] = None  # type: ignore[misc]
    where: ClassVar[None] = None  # type: ignore[misc]

    function: Literal["expression"] = "expression"
    expression: Expression = Field(
        description="SQL expression over other metrics of the aggregation. Set either function or expression. If"
        " windows are merged, the expression is computed from the merged metrics."
    )


def _metric_class(function: Function) -> type[MetricSpec]:
    members: dict[str, Any] = {"function": (Literal[function.name], ...)}
    if not function.field_optional:
        members["field"] = (Name, Field(description=_FIELD))
    members |= {name: _parameter_field(info) for name, info in function.parameters.model_fields.items()}
    name = "".join(word.title() for word in function.name.split("_"))
    base, doc = FunctionMetric, function.__doc__
    return create_model(f"{name}Metric", __base__=base, __module__=__name__, __doc__=doc, **members)


def _parameter_field(info: FieldInfo) -> tuple[Any, Any]:
    if info.is_required():
        return info.annotation, copy(info)
    return type_of(info) | None, Field(None, description=info.description)


def _missing(function: str, member: Member) -> tuple[str, str]:
    if member.name == "expression":
        return "a metric needs a function or an expression", "add a function, such as function: count"
    if member.name == "field":
        return f"{function} needs a field", "add field: NAME, with the name of a field or a derived field"
    return f"{function} needs {member.alias}", PARAMETERS[member.name].remedy


def _unsupported(function: str, member: Member) -> tuple[str, str]:
    if member.name == "expression":
        return f"{function} takes no expression", "remove either function or expression"
    if function == "expression":
        return f"a metric without a function takes no {member.alias}", f"add a function, or remove {member.alias}"
    return (
        f"{function} takes no {member.alias}",
        f"remove {member.alias}, or use function: {join_names(member.kinds, 'or')}",
    )


METRICS: Kinds[MetricSpec] = Kinds(
    (*map(_metric_class, FUNCTIONS.values()), ExpressionMetric),
    tag="function",
    title="MetricSpec",
    doc="A value that is computed for each group and window.",
    tag_description="Aggregate function. Set either function or expression.",
    fault_texts=FaultTexts(missing=_missing, unsupported=_unsupported),
)
