"""Parameters of a request, from a query string or a JSON body."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import parse_qsl

import msgspec

from tidemill_chassis.web.problems import Problem, bad_parameter

T = TypeVar("T")
MAX_FIELDS = 100
MAX_BODY_BYTES = 64 * 1024
_MAX_EXACT = 2**53
"""Largest number up to which doubles represent every whole number exactly."""


@dataclass(frozen=True)
class BodyMember:
    """The allowed types of a member in a JSON body."""

    types: tuple[type, ...]
    hint: str
    is_list: bool = False

    def texts(self, name: str, value: Any) -> list[str]:
        """Return JSON values as texts, as in a query string.

        Raises:
            Problem: the value has the wrong type.
        """
        if isinstance(value, list) is not self.is_list:
            raise bad_parameter(name, f"write {self.hint}")
        return [self._text(name, item) for item in (value if self.is_list else [value])]

    def _text(self, name: str, value: Any) -> str:
        if isinstance(value, float) and value.is_integer() and abs(value) <= _MAX_EXACT:
            value = int(value)  # JSON does not distinguish 2 from 2.0
        if type(value) not in self.types:
            raise bad_parameter(name, f"write {self.hint}")
        if isinstance(value, bool):
            return "true" if value else "false"
        return value if isinstance(value, str) else repr(value)


_SCALAR = BodyMember((str, bool, int, float), "text, a number, true or false; for nulls use <column>__isnull")
_SCALARS = BodyMember(
    _SCALAR.types, "a list of texts, numbers or booleans; for nulls use <column>__isnull", is_list=True
)


class Parameters:
    """The parameters of a request that have not been read yet."""

    def __init__(self, values_by_name: dict[str, list[str]], *, split: bool) -> None:
        self.unread = values_by_name
        self._split = split

    @classmethod
    def from_query(cls, query: bytes) -> Parameters:
        """Parse a raw query string.

        Raises:
            Problem: the query string is not UTF-8, or has too many parameters.
        """
        try:
            pairs = parse_qsl(query.decode("ascii"), keep_blank_values=True, max_num_fields=MAX_FIELDS, errors="strict")
        except UnicodeDecodeError:
            raise Problem(400, "invalid_query_string", "write the query string percent-encoded, as UTF-8") from None
        except ValueError as error:
            raise Problem(400, "invalid_query_string", f"{error}; at most {MAX_FIELDS}") from None
        values_by_name: dict[str, list[str]] = {}
        for name, value in pairs:
            values_by_name.setdefault(name, []).append(value)
        return cls(values_by_name, split=True)

    @classmethod
    def from_json(cls, body: bytes, members: Mapping[str, BodyMember]) -> Parameters:
        """Parse a JSON object of parameters. A list gives one parameter several values.

        Raises:
            Problem: the body is not a JSON object, a value has the wrong type, or there are too many parameters.
        """
        try:
            document = msgspec.json.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise Problem(400, "invalid_body", f"the body is not JSON: {error}") from None
        if not isinstance(document, dict):
            raise Problem(400, "invalid_body", 'write a JSON object of parameters, e.g. {"limit": 10}')
        if len(document) > MAX_FIELDS:
            raise Problem(400, "invalid_body", f"the body has more than {MAX_FIELDS} parameters; send fewer filters")
        values_by_name = {}
        for name, value in document.items():
            is_list = isinstance(value, list) and name.endswith("__in")
            values_by_name[name] = members.get(name, _SCALARS if is_list else _SCALAR).texts(name, value)
        return cls(values_by_name, split=False)

    def pop_one(self, name: str) -> str | None:
        """Remove a parameter, and return its only value, or None if the parameter is not given.

        Raises:
            Problem: the parameter is given more than once.
        """
        values = self.unread.pop(name, None)
        if values is None:
            return None
        if len(values) != 1:
            raise bad_parameter(name, f"given {len(values)} times; give it once")
        return values[0]

    def pop_list(self, name: str) -> list[str] | None:
        """Remove a parameter, and return all its values, or None if the parameter is not given.

        A query string can repeat the parameter, or separate its values by commas.
        """
        values = self.unread.pop(name, None)
        if values is None:
            return None
        return [part for value in values for part in (value.split(",") if self._split else [value])]

    def pop_parsed(self, name: str, parse: Callable[[str], T]) -> T | None:
        """Remove a parameter, and return its parsed value, or None if the parameter is not given.

        Raises:
            Problem: the parameter is given more than once, or `parse` raised a ValueError. The detail is the
                ValueError's text.
        """
        text = self.pop_one(name)
        if text is None:
            return None
        try:
            return parse(text)
        except ValueError as error:
            raise bad_parameter(name, str(error)) from None

    def pop_choice(self, name: str, choices: Collection[str]) -> str | None:
        """Remove a parameter with fixed choices, and return its value, or None if the parameter is not given.

        Raises:
            Problem: the parameter is given more than once, or is not one of the choices.
        """
        text = self.pop_one(name)
        if text is not None and text not in choices:
            raise bad_parameter(name, f"{text!r} is not one of {', '.join(choices)}")
        return text

    def refuse_unknown(self, allowed: Collection[str]) -> None:
        """Refuse a request with an unknown parameter.

        Raises:
            Problem: a parameter is unknown. The detail lists the known parameters.
        """
        for name in self.unread:
            short = name if len(name) <= 60 else name[:59] + "…"
            raise bad_parameter(
                short, f"there is no such parameter; known parameters: {', '.join(allowed)}", code="unknown_parameter"
            )
