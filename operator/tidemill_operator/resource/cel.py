"""Create CEL rules for the API server, with messages that contain the written values.

The server estimates the cost of rules. The results of `+`, `join` and `filter` are too costly, so the rules use
`format` and `map`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

_MOST_LISTED = 16


@dataclass(frozen=True)
class Rule:
    """A rule about the value at one path of the resource. `text` is a CEL expression for the message."""

    rule: str
    message: str
    text: str
    at: str = ""

    def rendered(self) -> dict[str, Any]:
        """Return the rule in the CRD's format."""
        made = {"rule": self.rule, "message": self.message, "messageExpression": self.text}
        return made | ({"fieldPath": f".{self.at}"} if self.at else {})


def say(template: str, *values: str) -> str:
    """Return CEL for a text with values filled in."""
    # All items of a CEL list must have the same type, unless they are wrapped in `dyn`.
    return f"'{template}'.format([{', '.join(f'dyn({value})' for value in values)}])"


def known(names: str) -> str:
    """Return CEL that lists the known names, unless there are too many."""
    return f"({names} != [] && size({names}) <= {_MOST_LISTED} ? {say('; known are %s', names)} : '')"


def first(items: str, wrong: str, text: str) -> str:
    """Return CEL for the message about the first wrong item `i` of a list."""
    return f"{items}.map(i, {wrong}, {text})[0]"
