"""Builds CEL rules for the API server, with messages that contain the written values.

The server refuses rules whose estimated cost is too high. It knows the bounds of lists and strings from the schema, but
not those of the results of `+`, `join` and `filter`. `format`, and `map` with a condition, are accepted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

_MOST_LISTED = 16


@dataclass(frozen=True)
class Rule:
    """One rule of a place in the resource.

    Attributes:
        rule: the CEL condition.
        message: a general description of the rule.
        text: a CEL expression for the message about a specific resource, with the remedy.
        at: the faulty member, below the place; empty: the place itself.
    """

    rule: str
    message: str
    text: str
    at: str = ""

    def rendered(self) -> dict[str, Any]:
        """Return the rule in the CRD's format."""
        made = {"rule": self.rule, "message": self.message, "messageExpression": self.text}
        return made | ({"fieldPath": f".{self.at}"} if self.at else {})


def say(template: str, *values: str) -> str:
    """Return CEL for a text with values. Uses `format`, because `+` has a too high estimated cost."""
    # A CEL list has one type, unless its items are declared dynamic.
    return f"'{template}'.format([{', '.join(f'dyn({value})' for value in values)}])"


def known(names: str) -> str:
    """Return CEL that lists the known names, if they are not too many; for a `%s` right after a text."""
    return f"({names} != [] && size({names}) <= {_MOST_LISTED} ? {say('; known are %s', names)} : '')"


def first(items: str, wrong: str, text: str) -> str:
    """Return CEL for the text of the first wrong item (named `i`) of a list."""
    return f"{items}.map(i, {wrong}, {text})[0]"
