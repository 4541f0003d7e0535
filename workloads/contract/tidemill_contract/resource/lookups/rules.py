"""The rules of `spec.lookups`: the members of each source, the key field, and the fields of rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from tidemill_contract.decimals import DECIMAL
from tidemill_contract.duration import parse_ms
from tidemill_contract.names import is_connect_topic
from tidemill_contract.resource.faults import ABSENT, Fault, did_you_mean
from tidemill_contract.resource.field_rules import value_format_faults
from tidemill_contract.resource.inputs.topics import CONNECT_TOPIC_MESSAGE
from tidemill_contract.resource.lookups.model import SUFFIXES, LookupField, LookupSource, LookupSpec
from tidemill_contract.resource.parts import Part, Parts
from tidemill_contract.resource.paths import EACH_ELEMENT, show_path

KEY_TYPES = ("string", "integer")
"""The allowed types of a lookup's key. Other types have several notations for a value, such as 1.0 and 1.00."""
MIN_REFRESH, MAX_REFRESH = "1s", "1d"
_TABLES = ("table", "query")
_MEMBERS = {
    "file": ("configMap",),
    "secretRef": _TABLES,
    "refresh": _TABLES,
    "key": ("configMap", *_TABLES),
}
"""The members of `from` that only some sources have, and the names of these sources."""
_REQUIRED = {
    "configMap": {"file": "name a file in the ConfigMap", "key": "name the column with the key"},
    "table": {"secretRef": "name the Secret with the login", "key": "name the column with the key"},
    "query": {"secretRef": "name the Secret with the login", "key": "name the column with the key"},
    "topic": {},
}


class TopicPrefixes(Protocol):
    """The prefixes of topics that lookups may read."""

    @property
    def topic_prefixes(self) -> tuple[str, ...]: ...  # noqa: D102


def lookup_types(lookups: Sequence[Part[LookupSpec]]) -> dict[str, str | None]:
    """Return the types of the fields that lookups add, by name. The type is None for a decimal without `scale`."""
    fields = [field for lookup in lookups if lookup.model is not None for field in lookup.model.fields]
    return {field.name: None if field.kind == DECIMAL else field.kind for field in fields}


def lookup_names(lookups: Sequence[Part[LookupSpec]]) -> list[tuple[str, str]]:
    """Return the path and the name of each field that lookups add."""
    return [
        (f"{lookup.path}.fields[{i}].name", field.name)
        for lookup in lookups
        if lookup.model is not None
        for i, field in enumerate(lookup.model.fields)
    ]


def lookup_faults(parts: Parts, _columns: object, limits: TopicPrefixes) -> Iterator[Fault]:
    """Yield a fault for each broken rule about lookups."""
    types = {field.name: None if field.model is None else field.model.type for field in parts.fields if field.name}
    complete = bool(types) and all(field.name for field in parts.fields)
    derives = {derive.name for derive in parts.derives}
    for lookup in parts.lookups:
        if lookup.model is None:
            complete = False
            continue
        yield from _key_field_faults(lookup.model, f"{lookup.path}.on", types, derives, complete=complete)
        yield from _source_faults(lookup.model.source, f"{lookup.path}.from", parts.namespace, limits)
        kind = lookup.model.source.kind
        for i, field in enumerate(lookup.model.fields):
            yield from _row_field_faults(field, f"{lookup.path}.fields[{i}]", kind, lookup.model.source)
        types |= {field.name: field.type for field in lookup.model.fields}


def _key_field_faults(
    lookup: LookupSpec, path: str, types: dict[str, Any], derives: set[str | None], *, complete: bool
) -> Iterator[Fault]:
    if lookup.on not in types:
        if lookup.on in derives:
            message = "is a derive, but lookups are joined before the derives"
            yield Fault(path, lookup.on, message, "use a field of spec.source.fields, or of an earlier lookup")
        elif complete:
            message = "neither spec.source.fields nor an earlier lookup has a field of this name"
            yield Fault(path, lookup.on, message, did_you_mean(lookup.on, types))
        return
    kind = types[lookup.on]
    if kind is not None and kind not in KEY_TYPES:
        message = f"is of type {kind}, but only strings and integers can be looked up"
        yield Fault(path, lookup.on, message, f"use a field of type {' or '.join(KEY_TYPES)}")


def _source_faults(source: LookupSource, path: str, namespace: str, limits: TopicPrefixes) -> Iterator[Fault]:
    given = {
        "configMap": source.config_map,
        "table": source.table,
        "query": source.query,
        "topic": source.topic,
        "file": source.file,
        "secretRef": None if source.secret_ref is None else source.secret_ref.name,
        "refresh": source.refresh,
        "key": source.key,
    }
    kind = source.kind
    if kind is None:
        message = "the lookup has no source"
        yield Fault(path, ABSENT, message, "add configMap:, table:, query: or topic:")
        return
    for other in ("table", "query", "topic"):
        if other != kind and given[other] is not None:
            message = f"the lookup already reads rows from {kind}"
            yield Fault(f"{path}.{other}", given[other], message, f"remove {kind} or {other}")
    for member, kinds in _MEMBERS.items():
        if given[member] is not None and kind not in kinds:
            message = f"a lookup from a {kind} has no {member}"
            reason = ", because the key of each record is the key of the row" if member == "key" else ""
            yield Fault(f"{path}.{member}", given[member], message, f"remove {member}{reason}")
    for member, remedy in _REQUIRED[kind].items():
        if given[member] is None:
            yield Fault(f"{path}.{member}", ABSENT, f"a lookup from a {kind} needs {member}", remedy)
    if source.file is not None and not source.file.endswith(SUFFIXES):
        message = "the suffix of the file is unknown"
        yield Fault(f"{path}.file", source.file, message, f"use a file that ends with {', '.join(SUFFIXES)}")
    if source.refresh is not None and not parse_ms(MIN_REFRESH) <= source.refresh_ms <= parse_ms(MAX_REFRESH):
        yield Fault(f"{path}.refresh", source.refresh, "is out of bounds", f"write {MIN_REFRESH} to {MAX_REFRESH}")
    if source.topic is not None and is_connect_topic(source.topic):
        yield Fault(f"{path}.topic", source.topic, CONNECT_TOPIC_MESSAGE, "use another topic")
    elif source.topic is not None and not source.topic.startswith((f"{namespace}.", *limits.topic_prefixes)):
        remedy = f"use a topic that starts with '{namespace}.', or allow the prefix in the platform's settings"
        yield Fault(f"{path}.topic", source.topic, "the topic belongs to another namespace", remedy)


def _row_field_faults(field: LookupField, path: str, kind: str | None, source: LookupSource) -> Iterator[Fault]:
    yield from value_format_faults(field.row_field, path)
    steps = field.row_field.member_path
    if EACH_ELEMENT in steps:
        remedy = f"read one element, such as {show_path(tuple(0 if step == EACH_ELEMENT else step for step in steps))}"
        yield Fault(f"{path}.path", field.path, "arrays in rows cannot be exploded", remedy)
    elif kind == "configMap" and (source.file or "").endswith(".csv") and len(steps) != 1:
        message = "a cell of CSV has no members"
        remedy = "write a column's name; if the name has dots, write a list, such as ['unit.price']"
        yield Fault(f"{path}.path", field.path, message, remedy)
    elif source.key is not None and len(steps) > 1 and steps[0] == source.key:
        yield Fault(f"{path}.path", field.path, "the key of a row has no members", "use another column")
