"""What is computed per group and window: a class a function, made from the registry, with its function's parameters."""

from __future__ import annotations

from copy import copy
from typing import Any, Literal

from pydantic import Field, create_model
from pydantic.fields import FieldInfo

from tidemill_contract.functions.base import Expression, Function, Name
from tidemill_contract.functions.registry import ALONE, FUNCTIONS, PARAMETERS, listed
from tidemill_contract.resource.kinds.base import Kinds, Member, Model, Words, type_of

_FIELD = f"Field or derive it runs over; {listed(ALONE)} may do without."


class MetricSpec(Model):
    """One number (or value) computed per group and window."""

    name: Name = Field(description="Name of the metric in answers.")
    function: str
    field: Name | None = Field(None, description=_FIELD)
    where: Expression | None = Field(
        None, description="SQL condition; only events for which it is true count in this metric. Default: all events."
    )


def _kind(function: Function) -> type[MetricSpec]:
    """The metrics of a function. A parameter that is None is the function's own default."""
    members: dict[str, Any] = {"function": (Literal[function.name], ...)}
    if not function.alone:
        members["field"] = (Name, Field(description=_FIELD))
    members |= {name: _parameter(info) for name, info in function.parameters.model_fields.items()}
    name = "".join(word.title() for word in function.name.split("_"))
    return create_model(f"{name}Metric", __base__=MetricSpec, __module__=__name__, __doc__=function.__doc__, **members)


def _parameter(info: FieldInfo) -> tuple[Any, Any]:
    if info.is_required():
        return info.annotation, copy(info)
    return type_of(info) | None, Field(None, description=info.description)


def _missing(function: str, member: Member) -> tuple[str, str]:
    if member.name == "field":
        return f"{function} needs a field", "name the field or derive it runs over"
    return f"{function} needs {member.alias}", PARAMETERS[member.name].remedy


def _foreign(function: str, member: Member) -> tuple[str, str]:
    return f"{function} takes no {member.alias}", f"take it out, or use function: {listed(member.kinds, 'or')}"


METRICS: Kinds[MetricSpec] = Kinds(
    map(_kind, FUNCTIONS.values()),
    tag="function",
    title="MetricSpec",
    doc="One number (or value) computed per group and window.",
    tag_says="Aggregate function.",
    words=Words(missing=_missing, foreign=_foreign),
)
