"""CEL rules about members that only some kinds of windows, metrics or detectors have."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from tidemill_contract.duration import CALENDAR_UNITS
from tidemill_contract.functions.registry import PARAMETERS, join_names
from tidemill_contract.resource.kinds.base import Kinds, Member
from tidemill_contract.resource.kinds.detectors import DETECTORS
from tidemill_contract.resource.kinds.metrics import METRICS
from tidemill_contract.resource.kinds.windows import WINDOWS
from tidemill_operator.resource.cel import Rule, format_expression


def is_one_of(tag: str, names: Sequence[str], all_names: Iterable[str]) -> str:
    """Return a CEL expression that is true if the value of `tag` is in `names`."""
    rest = [name for name in all_names if name not in names]
    if len(names) == 1:
        return f"{tag} == '{names[0]}'"
    if len(rest) == 1:
        return f"{tag} != '{rest[0]}'"
    return f"{tag} in [{', '.join(repr(name) for name in names)}]"


def member_rule(kinds: Kinds[Any], member: Member, *, place: str, tag: str) -> str:
    """Return a CEL expression that requires the member for some kinds, and forbids the member for others."""
    has_member, all_names = f"has({place}.{member.alias})", list(kinds.by_name)
    if member.required_by == member.kinds:
        return f"{has_member} == ({is_one_of(tag, member.kinds, all_names)})"
    without = [name for name in all_names if name not in member.required_by]
    needed = f"{is_one_of(tag, without, all_names)} || {has_member}"
    allowed = f"!{has_member} || {is_one_of(tag, member.kinds, all_names)}"
    if len(member.kinds) == len(all_names):
        return needed
    return f"({needed}) && ({allowed})" if member.required_by else allowed


def window_rules() -> list[Rule]:
    """Return the rules about the window of an aggregation."""
    return [*(_window_rule(member) for member in WINDOWS.members.values()), _zone_rule()]


def _zone_rule() -> Rule:
    message = "aggregation %s: with zone, size must be in days or longer units, not %s"
    remedy = "write a length such as 1d, 1w or 1mo, or remove zone"
    units = "|".join(CALENDAR_UNITS)
    return Rule(
        f"!has(self.window.zone) || !has(self.window.size) || self.window.size.matches('^[0-9]+({units})$')",
        "with zone, size must be in days, weeks, months, quarters or years",
        format_expression(f"{message}; {remedy}", "self.name", "self.window.size"),
        "window.size",
    )


def _window_rule(member: Member) -> Rule:
    name, kind = member.alias, "self.window.type"
    foreign = format_expression(f"aggregation %s: a %s window takes no {name}; remove {name}", "self.name", kind)
    missing = format_expression(
        f"aggregation %s: a %s window needs {name}; add {name}: {member.example}", "self.name", kind
    )
    return Rule(
        member_rule(WINDOWS, member, place="self.window", tag=kind),
        _window_member_message(member),
        f"has(self.window.{name}) ? {foreign} : {missing}" if member.required_by else foreign,
        f"window.{name}",
    )


def _window_member_message(member: Member) -> str:
    windows = f"{join_names(member.kinds)} windows"
    if member.required_by:
        return f"{windows} need {member.alias}; other windows have none"
    return f"only {windows} may have {member.alias}"


def detector_rules() -> list[Rule]:
    """Return the rules for detectors."""
    return [_detector_rule(member) for member in DETECTORS.members.values()]


def _detector_rule(member: Member) -> Rule:
    name, kinds = member.alias, join_names(member.kinds, "or")
    types = "this type" if len(member.kinds) == 1 else "one of these types"
    # The CRD sets no defaults in list items. CEL rules therefore read a missing `type` as the default.
    kind = f"(has(self.type) ? self.type : '{DETECTORS.flat_model.model_fields['type'].default}')"
    foreign = format_expression(f"%s takes no {name}; remove {name}, or use {kinds}", kind)
    missing = format_expression(f"%s needs {name}; add {name}", kind)
    return Rule(
        member_rule(DETECTORS, member, place="self", tag=kind),
        f"{name} belongs to {join_names(member.kinds)}; remove {name}, or use {types}",
        f"has(self.{name}) ? {foreign} : {missing}" if member.required_by else foreign,
        name,
    )


# The CRD sets no defaults in list items. CEL rules therefore read a missing `function` as the default.
_FUNCTION = f"(has(self.function) ? self.function : '{METRICS.flat_model.model_fields['function'].default}')"


def metric_rules() -> list[Rule]:
    """Return the rules about the functions and expressions of metrics."""
    own = {"field": _field_rule, "where": _where_rule, "expression": _expression_rule}
    return [own[name]() if name in own else _function_rule(member) for name, member in METRICS.members.items()]


def _field_rule() -> Rule:
    member = METRICS.members["field"]
    alone = [name for name in member.kinds if name not in member.required_by]
    foreign = format_expression(
        "metric %s: a metric without a function takes no field; add a function, or remove field", "self.name"
    )
    missing = format_expression("metric %s: %s needs a field; add field: NAME", "self.name", _FUNCTION)
    return Rule(
        member_rule(METRICS, member, place="self", tag=_FUNCTION),
        f"every function but {join_names(alone)} needs a field; a metric with an expression must not have a field",
        f"has(self.field) ? {foreign} : {missing}",
        "field",
    )


def _where_rule() -> Rule:
    return Rule(
        member_rule(METRICS, METRICS.members["where"], place="self", tag=_FUNCTION),
        "the member where is allowed only in a metric with a function",
        format_expression(
            "metric %s: an expression takes no where; add where to the metrics that the expression uses",
            "self.name",
        ),
        "where",
    )


def _expression_rule() -> Rule:
    foreign = format_expression(
        "metric %s: %s takes no expression; remove either function or expression", "self.name", _FUNCTION
    )
    missing = format_expression(
        "metric %s needs a function or an expression; add a function, such as function: count", "self.name"
    )
    return Rule(
        member_rule(METRICS, METRICS.members["expression"], place="self", tag=_FUNCTION),
        "a metric has either a function or an expression",
        f"has(self.expression) ? {foreign} : {missing}",
        "expression",
    )


def _function_rule(member: Member) -> Rule:
    name, functions, several = member.alias, member.kinds, len(member.kinds) > 1
    foreign = f"metric %s: %s takes no {name}; remove {name}, or use {join_names(functions, 'or')}"
    missing = f"metric %s: %s needs {name}; {PARAMETERS[member.name].remedy}"
    taken, needed = (format_expression(text, "self.name", _FUNCTION) for text in (foreign, missing))
    other = "one of these functions" if several else "this function"
    message = f"only {join_names(functions)} may have {name}; remove {name}, or use {other}"
    if member.required_by:
        message = f"{join_names(functions)} {'need' if several else 'needs'} {name}; other functions have none"
    return Rule(
        member_rule(METRICS, member, place="self", tag=_FUNCTION),
        message,
        f"has(self.{name}) ? {taken} : {needed}" if member.required_by else taken,
        name,
    )
