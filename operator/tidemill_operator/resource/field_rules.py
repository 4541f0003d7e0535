"""The CEL rules about fields of events and about lookups."""

from __future__ import annotations

from tidemill_contract.resource.rules import RESERVED_COLUMNS
from tidemill_operator.resource.cel import Rule, format_expression

_RESERVED = "[" + ", ".join(f"'{name}'" for name in RESERVED_COLUMNS) + "]"

NOT_RESERVED = Rule(
    f"!(self.name in {_RESERVED})",
    f"the names {', '.join(RESERVED_COLUMNS)} are reserved",
    format_expression("the name %s is reserved for columns of API answers; choose another", "self.name"),
    "name",
)


def _only_for_type(kind: str, member: str) -> Rule:
    return Rule(
        f"!has(self.{member}) || self.type == '{kind}'",
        f"only fields of type {kind} have a {member}",
        format_expression(
            f"field %s is of type %s, and only {kind}s have a {member}; remove {member}", "self.name", "self.type"
        ),
        member,
    )


def _type_required_by(*origins: str, kind: str) -> Rule:
    return Rule(
        f"!has(self.from) || !(self.from in {list(origins)}) || self.type == '{kind}'",
        f"fields with from: {' or '.join(origins)} are of type {kind}",
        format_expression(f"field %s is read from the %s of records; write type: {kind}", "self.name", "self.from"),
        "type",
    )


WRITTEN = (
    _only_for_type("timestamp", "format"),
    _only_for_type("timestamp", "zone"),
    _only_for_type("decimal", "precision"),
    _only_for_type("decimal", "scale"),
    Rule(
        "self.type != 'decimal' || has(self.scale)",
        "a field of type decimal needs a scale",
        format_expression(
            "field %s is a decimal; add the number of digits after the point, such as scale: 2", "self.name"
        ),
        "type",
    ),
    Rule(
        "!has(self.precision) || !has(self.scale) || self.scale <= self.precision",
        "scale must not be more than precision",
        format_expression(
            "field %s: scale %d is more than precision %d; lower the scale", "self.name", "self.scale", "self.precision"
        ),
        "scale",
    ),
)
FIELD = (
    *WRITTEN,
    _type_required_by("timestamp", kind="timestamp"),
    _type_required_by("partition", "offset", kind="integer"),
)

LOOKUP = Rule(
    "has(self.on) != has(self.__true__)",
    "a lookup needs the member `on` exactly once",
    format_expression(
        "lookup %s needs the member `on` exactly once; write the field that contains the key", "self.name"
    ),
    "on",
)
LOOKUP_SOURCE = Rule(
    "[has(self.configMap), has(self.table), has(self.query), has(self.topic)].exists_one(given, given)",
    "a lookup has one source: configMap, table, query or topic",
    "'a lookup has one source; write one of configMap, table, query and topic'",
)
