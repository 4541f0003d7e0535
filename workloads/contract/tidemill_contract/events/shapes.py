"""The layout of events in memory: the typed structs, and the place of each field. The JSON reader fills the structs.

If a field has a path, the structs are nested like the event. Otherwise a single struct has all fields.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import repeat
from operator import attrgetter
from types import NoneType
from typing import Any

import msgspec

from tidemill_contract.events.event_errors import unknown_member, wrong_path
from tidemill_contract.events.members import Members, items, members
from tidemill_contract.resource.paths import Step, Steps


@dataclass(frozen=True)
class Leaf:
    """A field of an event, with its path and its type.

    Attributes:
        kind: the type that the JSON reader expects for a value other than null.
        default: the value in decoded events if the field is absent or null.
        is_outside: whether the value comes from outside the event, such as from a header.
        is_ignored: whether the JSON reader accepts the member, but ignores the value.
        element_field: if the leaf is the exploded array, the name of a field in the elements, for error messages.
    """

    name: str
    steps: Steps
    kind: Any
    required: bool
    default: Any = None
    is_outside: bool = False
    is_ignored: bool = False
    element_field: str = ""


@dataclass
class _Node:
    steps: Steps = ()
    children: dict[Step, _Node | Leaf] = field(default_factory=dict)
    type: Any = None
    owner: str = ""

    @property
    def is_array(self) -> bool:
        return any(isinstance(step, int) for step in self.children)

    @property
    def required(self) -> bool:
        return any(child.required for child in self.children.values())

    def leaves(self) -> list[Leaf]:
        all_leaves: list[Leaf] = []
        for child in self.children.values():
            all_leaves += child.leaves() if isinstance(child, _Node) else [child]
        return all_leaves


class Shape:
    """The layout of a pipeline's events.

    Attributes:
        type: the struct that the JSON reader fills. For paths of several steps, this struct contains other
            structs or arrays.
        flat: a struct with all fields at the top level. If no field has a path, `flat` and `type` are the same.
        nested: whether `type` and `flat` differ.
        duplicate_of: for each field that shares a member with an earlier field, the name of the earlier field.
    """

    def __init__(self, leaves: Sequence[Leaf], *, strict: bool) -> None:
        self._strict = strict
        self._root, self._inner_nodes = _Node(), list[_Node]()
        all_leaves, leaves = leaves, _merge(leaves)
        by_steps = {leaf.steps: leaf.name for leaf in leaves}
        first_names = {leaf.name: by_steps[leaf.steps] for leaf in all_leaves}
        self.duplicate_of = {name: first for name, first in first_names.items() if name != first}
        for leaf in leaves:
            self._add_leaf(leaf)
        read = [leaf for leaf in leaves if not leaf.is_ignored]
        self._declared = [leaf.steps for leaf in read if not leaf.is_outside]
        self.top_level_names = frozenset(str(steps[0]) for steps in self._declared)
        self.nested = any(leaf.steps != (leaf.name,) or leaf.is_ignored for leaf in leaves)
        self.flat = _struct("Event", [_field_definition(leaf) for leaf in read], strict=strict)
        shown = [_field_definition(leaf) for leaf in all_leaves if not leaf.element_field and not leaf.is_ignored]
        self._shown_type = self.flat if len(shown) == len(read) else _struct("Event", shown, strict=strict)
        self.type = self._compile(self._root, "Event", "") if self.nested else self.flat
        self._owners = {leaf.name: self._owner(leaf) for leaf in leaves}
        self._getters = {
            leaf.name: attrgetter(self._owner(leaf) + self.duplicate_of.get(leaf.name, leaf.name))
            for leaf in all_leaves
        }
        self._defaults = {leaf.name: leaf.default for leaf in all_leaves if leaf.default is not None}
        self._read_flat = msgspec.json.Decoder(self.flat).decode

    def _add_leaf(self, leaf: Leaf) -> None:
        node = self._root
        for depth, step in enumerate(leaf.steps[:-1], 1):
            child = node.children.setdefault(step, _Node(leaf.steps[:depth]))
            assert isinstance(child, _Node)  # noqa: S101 - no path is the beginning of another path
            node = child
        node.children[leaf.steps[-1]] = leaf

    def _compile(self, node: _Node, name: str, owner: str) -> Any:
        node.owner = owner
        fields = []
        for step, child in node.children.items():
            if isinstance(child, Leaf):
                fields.append((step, *_field_definition(child)))
                continue
            attribute = f"_{len(self._inner_nodes)}"
            self._inner_nodes.append(child)
            kind = self._compile(child, attribute, f"{owner}{attribute}.")
            definition = (kind,) if child.required else (kind | None, _new_struct(kind))
            fields.append((step, attribute, *definition))
        if node.is_array:
            node.type = _array_struct(name, fields)
        else:
            renamed = {attribute: str(step) for step, attribute, *_ in fields}
            node.type = _struct(name, [rest for _, *rest in fields], strict=self._strict, rename=renamed)
        return node.type

    def _owner(self, leaf: Leaf) -> str:
        node: Any = self._root
        for step in leaf.steps[:-1]:
            node = node.children[step]
        return node.owner if self.nested else ""

    def values(self, events: Sequence[Any], name: str) -> list[Any]:
        """Return a field's value in each event."""
        get = self._getters[name]
        try:
            field_values = list(map(get, events))
        except AttributeError:
            self._add_missing_structs(events)
            field_values = list(map(get, events))
        default = self._defaults.get(name)
        if default is not None and NoneType in set(map(type, field_values)):
            return [default if value is None else value for value in field_values]
        return field_values

    def put(self, events: Sequence[Any], name: str, values: Sequence[Any]) -> None:
        """Set a field's value in each event.

        Call `values` for the field first, because `values` adds missing structs.
        """
        owner = self._owners[name]
        owners = map(attrgetter(owner[:-1]), events) if owner else events
        deque(map(setattr, owners, repeat(name), values), maxlen=0)

    def _add_missing_structs(self, events: Sequence[Any]) -> None:
        for node in self._inner_nodes:
            outer, _, attribute = node.owner[:-1].rpartition(".")
            holders = events if not outer else list(map(attrgetter(outer), events))
            for holder in holders:
                if getattr(holder, attribute) is None:
                    setattr(holder, attribute, node.type())

    def read_flat(self, raw: bytes) -> Any:
        """Read an event in which each field is a top-level member, and return an object of `type`.

        Raises:
            msgspec.ValidationError: the event is not valid.
        """
        flat = self._read_flat(raw)
        return self._nest(self._root, flat) if self.nested else flat

    def _nest(self, node: _Node, flat: Any) -> Any:
        values: dict[str, Any] = {}
        for child in node.children.values():
            if isinstance(child, Leaf):
                values[child.name] = getattr(flat, child.name, None)  # `flat` has no attributes for ignored fields
            else:
                values[child.owner[:-1].rpartition(".")[2]] = self._nest(child, flat)
        if not node.is_array:
            return node.type(**values)
        return node.type(*(values.get(name, msgspec.Raw()) for name in node.type.__struct_fields__))

    def flatten(self, events: Sequence[Any], formatters: Mapping[str, Callable[[Any], str]]) -> Sequence[Any]:
        """Return the events as structs in which each field is an attribute.

        `formatters` contains, by field name, functions that convert values to text.
        """
        if not self.nested and not self._defaults and not self.duplicate_of and not formatters:
            return events
        names = self._shown_type.__struct_fields__
        if not names:
            return [self._shown_type()] * len(events)
        columns = [self.values(events, name) for name in names]
        for index, name in enumerate(names):
            if (format_value := formatters.get(name)) is not None:
                columns[index] = [None if value is None else format_value(value) for value in columns[index]]
        return [self._shown_type(**dict(zip(names, row, strict=True))) for row in zip(*columns, strict=True)]

    def extract(self, raw: bytes) -> Members:
        """Return the JSON text of each field in an event, by name.

        If no field has a path, the result also contains the event's undeclared members.

        Raises:
            InvalidEvent: a member on a path has the wrong type, or a member is unknown.
            msgspec.MsgspecError, UnicodeDecodeError: the bytes are not a JSON object.
            RecursionError: the JSON is nested too deeply.
        """
        if not self.nested:
            return members(raw)
        raw_fields: Members = {}
        self._extract_node(self._root, members(raw), raw_fields)
        return raw_fields

    def _extract_node(self, node: _Node, raw_members: Mapping[Any, bytes], raw_fields: Members) -> None:
        if self._strict and not node.is_array:
            unknown = next((name for name in raw_members if name not in node.children), None)
            if unknown is not None:
                raise unknown_member((*node.steps, unknown), self._declared)
        for step, child in node.children.items():
            value = raw_members.get(step)
            if value is None:
                continue
            if isinstance(child, Leaf):
                if child.element_field and value[:1] != b"[" and value != b"null":
                    raise wrong_path(child.element_field, child.steps, value, array=True)
                if not child.is_outside and not child.is_ignored:
                    raw_fields[child.name] = value
            elif value != b"null":
                if value[:1] != (b"[" if child.is_array else b"{"):
                    first = child.leaves()[0]
                    raise wrong_path(first.element_field or first.name, child.steps, value, array=child.is_array)
                inner = dict(enumerate(items(value))) if child.is_array else members(value)
                self._extract_node(child, inner, raw_fields)


def ignored_leaves(json_paths: Mapping[str, Steps], leaves: Sequence[Leaf]) -> list[Leaf]:
    """Return a `Leaf` for each field of type json. With it, the JSON reader ignores the values of these fields."""
    all_leaves = list(leaves)
    for name, steps in sorted(json_paths.items(), key=lambda item: len(item[1])):
        if not any(leaf.steps[: len(steps)] == steps[: len(leaf.steps)] for leaf in all_leaves):
            all_leaves.append(Leaf(name, steps, Any, required=False, is_ignored=True))
    return all_leaves[len(leaves) :]


def _merge(leaves: Sequence[Leaf]) -> list[Leaf]:
    by_steps: dict[Steps, Leaf] = {}
    for leaf in leaves:
        first = by_steps.setdefault(leaf.steps, leaf)
        by_steps[leaf.steps] = replace(first, required=first.required or leaf.required)
    return list(by_steps.values())


def _field_definition(leaf: Leaf) -> tuple[Any, ...]:
    if leaf.required:
        return leaf.name, leaf.kind
    return leaf.name, leaf.kind | None, leaf.default


def _new_struct(kind: Any) -> Any:
    return msgspec.field(default_factory=kind)


def _struct(
    name: str, fields: Sequence[Any], *, strict: bool, rename: Mapping[str, str] | None = None
) -> type[msgspec.Struct]:
    # Struct fields without a default must come first, as in a function's signature.
    ordered = [tuple(each) for each in fields if len(each) == 2] + [tuple(each) for each in fields if len(each) > 2]
    return msgspec.defstruct(name, ordered, kw_only=True, forbid_unknown_fields=strict, gc=False, rename=rename)


def _array_struct(name: str, fields: Sequence[Any]) -> type[msgspec.Struct]:
    by_place = {step: rest for step, *rest in fields}
    last_required = max((step for step, rest in by_place.items() if len(rest) == 2), default=-1)
    ordered: list[tuple[Any, ...]] = []
    for place in range(max(by_place) + 1):
        attribute, kind, *default = by_place.get(place, (f"_at{place}", msgspec.Raw, msgspec.Raw()))
        ordered.append((attribute, kind) if place <= last_required else (attribute, kind, *default))
    return msgspec.defstruct(name, ordered, array_like=True, gc=False)
