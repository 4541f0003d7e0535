"""Builds CEL rules for the API server, with messages that contain the written values.

The server refuses rules whose estimated cost is too high. The estimate is based on the bounds of lists and strings in
the schema, but the results of `+`, `join` and `filter` have no bounds. So the rules use `format`, and `map` with a
condition, whose cost the server accepts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

_MOST_LISTED = 16


@dataclass(frozen=True)
class Rule:
    """One rule about the value at one path of the resource.

    Attributes:
        rule: the CEL condition.
        message: a general description of the rule.
        text: a CEL expression that builds the message about a specific resource, with the remedy.
        at: the path of the faulty member below this value, or empty if the value itself is faulty.
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
    """Return CEL for a text with values filled in. It uses `format`, because the estimated cost of `+` is too high."""
    # Wrap the items in `dyn`, because otherwise all items of a CEL list must have the same type.
    return f"'{template}'.format([{', '.join(f'dyn({value})' for value in values)}])"


def known(names: str) -> str:
    """Return CEL that lists the known names, unless there are too many.

    The result is meant for a `%s` directly after a text, without a blank.
    """
    return f"({names} != [] && size({names}) <= {_MOST_LISTED} ? {say('; known are %s', names)} : '')"


def first(items: str, wrong: str, text: str) -> str:
    """Return CEL for the message about the first wrong item of a list. `wrong` and `text` refer to the item as `i`."""
    return f"{items}.map(i, {wrong}, {text})[0]"
