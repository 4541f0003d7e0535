"""The base of kinds. One member (the tag) names the kind, and the kind decides which other members are allowed.

In YAML all members are on one level, and the schema of the CRD can only list the members of all kinds together. So a
value is read twice. First the value is read *as written*, by a flat class with the members of all kinds, in which
members that some kinds lack are optional. Then the value is read as its kind. The flat class, the CRD's schema and its
rules are generated from the kinds.
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
"""The type of pydantic's error for a misplaced member: the kind does not have it, or needs it and it is absent."""


class Model(BaseModel):
    """Base of all spec classes. YAML names are in camelCase, unknown members are refused, instances are immutable."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True, strict=True)


K = TypeVar("K", bound=Model)


@dataclass(frozen=True)
class Member:
    """A member that only some kinds have, or that only some kinds need.

    Attributes:
        name: the member's name in Python.
        alias: its name in YAML.
        kinds: the names of the kinds that have it.
        needing: the names of the kinds that must have it.
        example: a value, as in YAML.
    """

    name: str
    alias: str
    kinds: tuple[str, ...]
    needing: tuple[str, ...]
    example: str


@dataclass(frozen=True)
class Words:
    """Functions that return the message and the remedy for a misplaced member (see `MISPLACED`).

    Both functions get the kind's name and the member.

    Attributes:
        missing: for a member that the kind needs and that is absent.
        foreign: for a member that only other kinds have.
    """

    missing: Callable[[str, Member], tuple[str, str]]
    foreign: Callable[[str, Member], tuple[str, str]]


class Kinds(Generic[K]):
    """The kinds of one thing, such as windows.

    As metadata of an `Annotated` type, an object of this class makes pydantic read a value as its kind.

    Attributes:
        tag: the name of the member that names the kind.
        by_name: the classes of the kinds, by the value of the tag.
        written: the flat class with the members of all kinds.
        members: the members that only some kinds have or need, by name, in the order of the fields of `written`.
    """

    def __init__(
        self, kinds: Iterable[type[K]], *, tag: str, title: str, doc: str, tag_says: str, words: Words
    ) -> None:
        """Flatten the kinds.

        Args:
            kinds: the classes of the kinds. In each class, the tag has a single possible value.
            tag: the name of the member that names the kind.
            title: the name of the flat class.
            doc: the docstring of the flat class.
            tag_says: the description of the tag.
            words: the texts about misplaced members.

        Raises:
            TypeError: a member has different types or bounds in different kinds.
        """
        self.tag, self._words = tag, words
        self.by_name: Mapping[str, type[K]] = {_value(kind, tag): kind for kind in kinds}
        self.written = self._flattened(title, doc, tag_says)
        found = {name: self._member(name) for name in self.written.model_fields}
        self.members: Mapping[str, Member] = {name: member for name, member in found.items() if member is not None}

    def make(self, **members: Any) -> K:
        """Return an instance of the kind that the tag in `members` names.

        Raises:
            pydantic.ValidationError: the members do not fit a kind.
        """
        return self._adapter.validate_python(members)

    @cached_property
    def _adapter(self) -> TypeAdapter[K]:
        return TypeAdapter(Annotated[Any, self])

    def narrow(self, written: Model) -> K | None:
        """Return the flat object as an instance of its kind, or None if a member that the kind needs is absent."""
        kind: type[K] = self.by_name[getattr(written, self.tag)]
        given = {name: getattr(written, name) for name in kind.model_fields if name in written.model_fields_set}
        if any(given.get(name) is None for name, info in kind.model_fields.items() if info.is_required()):
            return None
        return cast(K, kind.model_construct(set(given), **given))

    def widen(self, found: K) -> Model:
        """Return an instance of a kind as the flat class, with the members of all kinds."""
        return self.written.model_construct(found.model_fields_set, **dict(found))

    def fault(self, written: Model, member: Member, path: str) -> Fault | None:
        """Return a fault if the kind does not have a member that is set, or needs a member that is absent."""
        kind, value = getattr(written, self.tag), getattr(written, member.name)
        if value is None:
            missing = kind in member.needing
            return Fault(f"{path}.{member.alias}", ABSENT, *self._words.missing(kind, member)) if missing else None
        if kind in member.kinds:
            return None
        return Fault(f"{path}.{member.alias}", value, *self._words.foreign(kind, member))

    def faults(self, written: Model, path: str) -> Iterator[Fault]:
        """Yield the faults of all misplaced members."""
        for member in self.members.values():
            fault = self.fault(written, member, path)
            if fault:
                yield fault

    def __get_pydantic_core_schema__(self, _source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Return a schema that validates a value as the flat class, then as its kind.

        The JSON schema is that of the flat class. A kind is dumped with its own members only.
        """
        # There is a before-validator and an after-validator, because a single wrap-validator would lose pydantic's
        # alias settings.
        taken = core_schema.no_info_before_validator_function(self._taken, handler.generate_schema(self.written))
        as_it_is = core_schema.simple_ser_schema("any")
        return core_schema.no_info_after_validator_function(self._read, taken, serialization=as_it_is)

    def _taken(self, value: Any) -> Any:
        return self.widen(cast(K, value)) if isinstance(value, tuple(self.by_name.values())) else value

    def _read(self, written: Model) -> K:
        placed = [(member, self.fault(written, member, "")) for member in self.members.values()]
        if wrong := [_details(member, fault) for member, fault in placed if fault is not None]:
            raise ValidationError.from_exception_data(self.written.__name__, wrong)
        found = self.narrow(written)
        assert found is not None  # noqa: S101 - the lines above have checked that no needed member is absent
        return found

    def _flattened(self, title: str, doc: str, tag_says: str) -> type[Model]:
        """Return the flat class with the members of all kinds."""
        made: dict[str, Any] = {name: self._as_written(name, tag_says) for name in _in_order(self.by_name.values())}
        return create_model(title, __base__=Model, __module__=__name__, __doc__=doc, **made)

    def _as_written(self, name: str, tag_says: str) -> tuple[Any, Any]:
        """Return the type and the field of a member of the flat class."""
        having = self._having(name)
        first, *others = having.values()
        if name == self.tag:
            default = next((info.default for info in having.values() if not info.is_required()), ...)
            return Literal[tuple(self.by_name)], Field(default, description=tag_says)
        if any(type_of(info) != type_of(first) for info in others):
            raise TypeError(f"{name} is not the same in all kinds that have it: {', '.join(having)}")
        everywhere = len(having) == len(self.by_name)
        if everywhere and not self._is_of_some(having):
            return first.annotation, copy(first)
        says = first.description or ""
        says = says if everywhere else _naming(self.by_name, having, says)
        return type_of(first) | None, Field(None, description=says)

    def _having(self, name: str) -> dict[str, FieldInfo]:
        """Return the member's field in each kind that has it, by the kind's name."""
        kinds = self.by_name.items()
        return {value: kind.model_fields[name] for value, kind in kinds if name in kind.model_fields}

    def _is_of_some(self, having: Mapping[str, FieldInfo]) -> bool:
        """Return whether the kinds differ: some lack the member, or some need it and others do not."""
        return len(having) < len(self.by_name) or len({info.is_required() for info in having.values()}) > 1

    def _member(self, name: str) -> Member | None:
        having = self._having(name)
        if name == self.tag or not self._is_of_some(having):
            return None
        needing = tuple(value for value, info in having.items() if info.is_required())
        first = next(iter(having.values()))
        return Member(name, str(first.alias), tuple(having), needing, str((first.examples or [""])[0]))


def type_of(info: FieldInfo) -> Any:
    """Return the type of a member's values with their bounds, without None."""
    kind: Any = Annotated[(info.annotation, *info.metadata)] if info.metadata else info.annotation
    if get_origin(kind) in (Union, UnionType):
        return Union[tuple(part for part in get_args(kind) if part is not NoneType)]  # noqa: UP007 - of a tuple
    return kind


def _value(kind: type[Model], tag: str) -> str:
    (value,) = get_args(kind.model_fields[tag].annotation)
    return str(value)


def _in_order(kinds: Iterable[type[Model]]) -> list[str]:
    """Return the names of the members of all kinds. Their order is consistent with the order in each kind."""
    names: list[str] = []
    for kind in kinds:
        at = len(names)
        for name in reversed(kind.model_fields):
            if name in names:
                at = names.index(name)
            else:
                names.insert(at, name)
    return names


def _naming(known: Iterable[str], kinds: Iterable[str], description: str) -> str:
    """Insert the names of the kinds that have a member after the first clause of its description, in brackets.

    If only few kinds lack the member, the brackets contain `all but` and the names of these kinds.
    """
    having, others = list(kinds), [name for name in known if name not in kinds]
    listed = ", ".join(having) if len(having) <= 4 * len(others) else f"all but {', '.join(others)}"
    return re.sub(r"(?=[.;:])", f" ({listed})", description, count=1)


def _details(member: Member, fault: Fault) -> InitErrorDetails:
    """Return a fault as an error of pydantic."""
    told = PydanticCustomError(MISPLACED, "{told}", {"told": f"{fault.message}; {fault.remedy}"})
    return InitErrorDetails(type=told, loc=(member.alias,), input=None if fault.value is ABSENT else fault.value)
