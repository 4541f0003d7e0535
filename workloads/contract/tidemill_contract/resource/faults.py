"""Faults are errors in a resource, with a path, a value, a message and a remedy."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

_MAX_SHOWN = 60


class Absent:
    """The type of the marker `ABSENT`."""


ABSENT = Absent()


@dataclass(frozen=True)
class Fault:
    """An error in a document.

    Attributes:
        path: the path of the wrong value, such as `spec.aggregations[0].window.size`, or an empty string for the whole
            document.
        value: the value at this path, or ABSENT if the document has no value there.
    """

    path: str
    value: Any
    message: str
    remedy: str

    def __str__(self) -> str:
        got = "" if isinstance(self.value, Absent) else f" (got {show(self.value)})"
        where = f"{self.path}: " if self.path else ""
        return one_line(f"{where}{self.message}{got}; {self.remedy}")


def one_line(text: str) -> str:
    """Escape control characters, and characters that UTF-8 cannot encode."""
    text = "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)
    return text.encode("utf-8", "backslashreplace").decode()


def show(value: Any) -> str:
    """Return a short form of a value for a message, such as `12`, `"abc"` or `a list`."""
    match value:
        case dict():
            return "a mapping" if value else "an empty mapping"
        case list() | tuple() | set() | frozenset():
            return "a list" if value else "an empty list"
        case None:
            return "nothing"
        case bool():
            return str(value).lower()
        case int() if value.bit_length() > 200:
            return "a huge integer"
        case str():
            text = value if len(value) <= _MAX_SHOWN else value[: _MAX_SHOWN - 1] + "…"
            return json.dumps(text, ensure_ascii=False)
        case int() | float():
            return str(value)
    return f"a {type(value).__name__}"


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """Return `did you mean 'x'?`, or the list of choices if no choice is similar."""
    choices = [str(choice) for choice in choices]
    lowered = {choice.lower(): choice for choice in reversed(choices)}
    close = difflib.get_close_matches(word[:100].lower(), lowered, n=1, cutoff=0.6)
    if close:
        return f"did you mean '{lowered[close[0]]}'?"
    listed = ", ".join(choices[:16]) + (", …" if len(choices) > 16 else "")
    return f"use one of {listed}" if choices else "there are none"
