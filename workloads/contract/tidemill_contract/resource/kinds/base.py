"""Base classes for windows, detectors and metrics, which have several kinds.

The tag is the member that names the kind, such as `type: tumbling`. Pydantic first creates an instance of
`Kinds.flat_model`, which has the members of all kinds. Then `Kinds` converts the instance to the class of its kind.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from types import NoneType, UnionType
from typing import Annotated, Any, Generic, Literal, TypeVar, Union, cast, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, TypeAdapter, ValidationError, create_model
from pydantic.alias_generators import to_camel
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema, InitErrorDetails, PydanticCustomError, core_schema

from tidemill_contract.resource.faults import ABSENT, Fault

MISPLACED = "misplaced_member"
"""Pydantic's error type for a missing required member, or for a member unknown to the kind."""


class Model(BaseModel):
    """Base of all spec classes. Names are camelCase in YAML, unknown members are refused, instances are immutable."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True, strict=True)


K = TypeVar("K", bound=Model)


@dataclass(frozen=True)
class Member:
    """A member that only some kinds of windows, detectors or metrics have or require.

    Attributes:
        name: the member's name in Python.
        alias: the member's name in YAML.
        kinds: the names of the kinds that have the member.
        required_by: the names of the kinds that require the member.
        example: a valid value, as written in YAML.
    """

    name: str
    alias: str
    kinds: tuple[str, ...]
    required_by: tuple[str, ...]
    example: str


@dataclass(frozen=True)
class FaultTexts:
    """Functions that return a fault's message and remedy.

    Attributes:
        missing: called for a required member that is missing.
        unsupported: called for a member that the kind does not have.
    """

    missing: Callable[[str, Member], tuple[str, str]]
    unsupported: Callable[[str, Member], tuple[str, str]]


class Kinds(Generic[K]):
    """All kinds of windows, of detectors or of metrics.

    `Annotated[Any, kinds]` is the type of a pydantic field that accepts all kinds.

    Attributes:
        tag: the member that contains the name of the kind, such as `type`.
        flat_model: the class of instances before their kind is known, with the members of all kinds.
        members: the members that only some kinds have or require, by name.
    """

    def __init__(
        self, kinds: Iterable[type[K]], *, tag: str, title: str, doc: str, tag_description: str, fault_texts: FaultTexts
    ) -> None:
        """Create the class `flat_model` with the name `title` and the docstring `doc`.

        Raises:
            TypeError: a member has different types or bounds in different kinds.
        """
        self.tag, self._fault_texts = tag, fault_texts
        self.by_name: Mapping[str, type[K]] = {_kind_name(kind, tag): kind for kind in kinds}
        self.flat_model = self._build_flat_model(title, doc, tag_description)
        members = {name: self._member(name) for name in self.flat_model.model_fields}
        self.members: Mapping[str, Member] = {name: member for name, member in members.items() if member is not None}

    def make(self, **members: Any) -> K:
        """Create an instance from the members of a document, or raise pydantic.ValidationError."""
        return self._adapter.validate_python(members)

    @cached_property
    def _adapter(self) -> TypeAdapter[K]:
        return TypeAdapter(Annotated[Any, self])

    def to_kind(self, flat: Model) -> K | None:
        """Convert `flat`, which has the members of all kinds, to its own kind's class.

        If a required member is missing, return None.
        """
        kind: type[K] = self.by_name[getattr(flat, self.tag)]
        given = {name: getattr(flat, name) for name in kind.model_fields if name in flat.model_fields_set}
        if any(given.get(name) is None for name, info in kind.model_fields.items() if info.is_required()):
            return None
        return cast(K, kind.model_construct(set(given), **given))

    def to_flat(self, instance: K) -> Model:
        """Convert an instance of a kind to an instance of `flat_model`."""
        return self.flat_model.model_construct(instance.model_fields_set, **dict(instance))

    def fault(self, flat: Model, member: Member, path: str) -> Fault | None:
        """Return a fault if a required `member` is missing, or the kind does not have a given `member`."""
        kind, value = getattr(flat, self.tag), getattr(flat, member.name)
        if value is None:
            if kind not in member.required_by:
                return None
            return Fault(f"{path}.{member.alias}", ABSENT, *self._fault_texts.missing(kind, member))
        if kind in member.kinds:
            return None
        return Fault(f"{path}.{member.alias}", value, *self._fault_texts.unsupported(kind, member))

    def faults(self, flat: Model, path: str) -> Iterator[Fault]:
        """Yield a fault for each missing required member, and for each member of another kind."""
        for member in self.members.values():
            fault = self.fault(flat, member, path)
            if fault:
                yield fault

    def __get_pydantic_core_schema__(self, _source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        # A wrap validator would lose pydantic's alias settings, so use two validators.
        before = core_schema.no_info_before_validator_function(
            self._accept_instance, handler.generate_schema(self.flat_model)
        )
        unchanged = core_schema.simple_ser_schema("any")
        return core_schema.no_info_after_validator_function(self._to_checked_kind, before, serialization=unchanged)

    def _accept_instance(self, value: Any) -> Any:
        return self.to_flat(cast(K, value)) if isinstance(value, tuple(self.by_name.values())) else value

    def _to_checked_kind(self, flat: Model) -> K:
        member_faults = [(member, self.fault(flat, member, "")) for member in self.members.values()]
        if errors := [_details(member, fault) for member, fault in member_faults if fault is not None]:
            raise ValidationError.from_exception_data(self.flat_model.__name__, errors)
        instance = self.to_kind(flat)
        assert instance is not None  # noqa: S101 - the lines above have checked that no required member is absent
        return instance

    def _build_flat_model(self, title: str, doc: str, tag_description: str) -> type[Model]:
        fields: dict[str, Any] = {
            name: self._flat_field(name, tag_description) for name in _ordered_names(self.by_name.values())
        }
        return create_model(title, __base__=Model, __module__=__name__, __doc__=doc, **fields)

    def _flat_field(self, name: str, tag_description: str) -> tuple[Any, Any]:
        fields = self._fields_by_kind(name)
        first, *others = fields.values()
        if name == self.tag:
            default = next((info.default for info in fields.values() if not info.is_required()), ...)
            return Literal[tuple(self.by_name)], Field(default, description=tag_description)
        if any(type_of(info) != type_of(first) for info in others):
            raise TypeError(f"{name} has different types or bounds in the kinds {', '.join(fields)}")
        everywhere = len(fields) == len(self.by_name)
        if everywhere and not self._differs_by_kind(fields):
            return first.annotation, copy(first)
        text = first.description or ""
        text = text if everywhere else _with_kind_names(self.by_name, fields, text)
        return type_of(first) | None, Field(None, description=text)

    def _fields_by_kind(self, name: str) -> dict[str, FieldInfo]:
        kinds = self.by_name.items()
        return {value: kind.model_fields[name] for value, kind in kinds if name in kind.model_fields}

    def _differs_by_kind(self, fields: Mapping[str, FieldInfo]) -> bool:
        return len(fields) < len(self.by_name) or len({info.is_required() for info in fields.values()}) > 1

    def _member(self, name: str) -> Member | None:
        fields = self._fields_by_kind(name)
        if name == self.tag or not self._differs_by_kind(fields):
            return None
        required_by = tuple(value for value, info in fields.items() if info.is_required())
        first = next(iter(fields.values()))
        return Member(name, str(first.alias), tuple(fields), required_by, str((first.examples or [""])[0]))


def type_of(info: FieldInfo) -> Any:
    """Return a member's type with its constraints. Return an optional type without None."""
    kind: Any = Annotated[(info.annotation, *info.metadata)] if info.metadata else info.annotation
    if get_origin(kind) in (Union, UnionType):
        return Union[tuple(part for part in get_args(kind) if part is not NoneType)]  # noqa: UP007 - of a tuple
    return kind


def _kind_name(kind: type[Model], tag: str) -> str:
    (value,) = get_args(kind.model_fields[tag].annotation)
    return str(value)


def _ordered_names(kinds: Iterable[type[Model]]) -> list[str]:
    names: list[str] = []
    for kind in kinds:
        at = len(names)
        for name in reversed(kind.model_fields):
            if name in names:
                at = names.index(name)
            else:
                names.insert(at, name)
    return names


def _with_kind_names(names: Iterable[str], kinds: Iterable[str], description: str) -> str:
    """Add the names of kinds to a member's description, such as ` (hopping)`.

    The names come before the first `.`, `;` or `:`.
    """
    own_kinds, others = list(kinds), [name for name in names if name not in kinds]
    listed = ", ".join(own_kinds) if len(own_kinds) <= 4 * len(others) else f"all but {', '.join(others)}"
    return re.sub(r"(?=[.;:])", f" ({listed})", description, count=1)


def _details(member: Member, fault: Fault) -> InitErrorDetails:
    error_type = PydanticCustomError(MISPLACED, "{message}", {"message": f"{fault.message}; {fault.remedy}"})
    return InitErrorDetails(type=error_type, loc=(member.alias,), input=None if fault.value is ABSENT else fault.value)
