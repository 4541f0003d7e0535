"""Create the CEL rules of the CRD.

Kubernetes estimates the cost of rules, and refuses expensive rules. The estimate is high for `+`, `join` and `filter`.
The rules use `format` and `map` instead.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

_MAX_LISTED = 16


@dataclass(frozen=True)
class Rule:
    """A validation rule of the CRD.

    Attributes:
        rule: CEL expression that is true for valid resources.
        message: the message for the documentation.
        text: CEL expression of the error message.
        at: path of the wrong member, or an empty string for the whole object.
    """

    rule: str
    message: str
    text: str
    at: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the rule in the CRD's format."""
        rule = {"rule": self.rule, "message": self.message, "messageExpression": self.text}
        return rule | ({"fieldPath": f".{self.at}"} if self.at else {})


def format_expression(template: str, *values: str) -> str:
    """Return a CEL expression that formats a template with CEL values."""
    literal = template.replace("\\", "\\\\").replace("'", "\\'")
    # All items of a CEL list must have the same type, unless they are wrapped in `dyn`.
    return f"'{literal}'.format([{', '.join(f'dyn({value})' for value in values)}])"


def known_names(names: str) -> str:
    """Return a CEL expression that gives a text such as `; known are a, b`.

    Without names, or for more than 16 names, the text is empty.
    """
    return f"({names} != [] && size({names}) <= {_MAX_LISTED} ? {format_expression('; known are %s', names)} : '')"


def first_match(items: str, wrong: str, text: str) -> str:
    """Return a CEL expression: `text` for the first item `i` where `wrong` is true."""
    return f"{items}.map(i, {wrong}, {text})[0]"
