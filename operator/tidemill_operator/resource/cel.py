"""Rules of the API server (CEL), and the texts that it makes of what was written.

The server refuses what it thinks too dear: it bounds lists and strings by the schema, but forgets the bounds of what
`+`, `join` and `filter` make. `format` and `map` with a condition are taken.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

_MOST_LISTED = 16


@dataclass(frozen=True)
class Rule:
    """One rule of a place.

    Attributes:
        rule: what has to hold.
        message: what it asks for, of any resource.
        text: a CEL expression that says what is wrong with this one, and what to do.
        at: the member that is at fault, below the place; empty: the place itself.
    """

    rule: str
    message: str
    text: str
    at: str = ""

    def rendered(self) -> dict[str, Any]:
        """As the CRD has it."""
        made = {"rule": self.rule, "message": self.message, "messageExpression": self.text}
        return made | ({"fieldPath": f".{self.at}"} if self.at else {})


def say(template: str, *values: str) -> str:
    """CEL: a text with values; joined with `+`, the server would think it too dear."""
    # Lists take values of one type only, unless they are said to be of any.
    return f"'{template}'.format([{', '.join(f'dyn({value})' for value in values)}])"


def known(names: str) -> str:
    """CEL: which names are known, if they are not too many to be read; for a `%s` right after a text."""
    return f"({names} != [] && size({names}) <= {_MOST_LISTED} ? {say('; known are %s', names)} : '')"


def first(items: str, wrong: str, text: str) -> str:
    """CEL: the text of the first wrong item, called `i`, of a list."""
    return f"{items}.map(i, {wrong}, {text})[0]"
