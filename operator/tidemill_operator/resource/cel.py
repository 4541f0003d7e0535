"""Create the CEL rules of the CRD.

Kubernetes estimates the cost of rules, and refuses expensive rules. The estimate is high for `+`, `join` and `filter`.
The rules use `format` and `map` instead.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

_MOST_LISTED = 16


@dataclass(frozen=True)
class Rule:
    """A validation rule of the CRD.

    Attributes:
        rule: CEL expression that is true for valid resources.
        message: the message for the documentation.
        text: CEL expression that returns the error message.
        at: path of the wrong member, or an empty string for the whole object.
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
    """Return a CEL expression that formats a template with CEL values."""
    # All items of a CEL list must have the same type, unless they are wrapped in `dyn`.
    return f"'{template}'.format([{', '.join(f'dyn({value})' for value in values)}])"


def known(names: str) -> str:
    """Return a CEL expression that gives the text `; known are a, b`, or no text for more than 16 names."""
    return f"({names} != [] && size({names}) <= {_MOST_LISTED} ? {say('; known are %s', names)} : '')"


def first(items: str, wrong: str, text: str) -> str:
    """Return a CEL expression that gives `text` for the first item `i` for which `wrong` is true."""
    return f"{items}.map(i, {wrong}, {text})[0]"
