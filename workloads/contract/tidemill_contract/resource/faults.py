"""The faults of a resource. Each has a path, a value, a message and a remedy, and can be written as text."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

_SHOWN = 60


class Absent:
    """The type of `ABSENT`, which stands for the value if the document has none at the path of the fault."""


ABSENT = Absent()


@dataclass(frozen=True)
class Fault:
    """One fault of a document.

    Attributes:
        path: the path of the wrong value, such as `spec.aggregations[0].window.size`. The path is empty for a fault of
            the whole document.
        value: the value at this path, or ABSENT if there is none.
        message: the description of the fault.
        remedy: how to correct it.
    """

    path: str
    value: Any
    message: str
    remedy: str

    def __str__(self) -> str:
        """Return `path: message (got value); remedy`, always on one line."""
        got = "" if isinstance(self.value, Absent) else f" (got {show(self.value)})"
        where = f"{self.path}: " if self.path else ""
        return one_line(f"{where}{self.message}{got}; {self.remedy}")


def one_line(text: str) -> str:
    """Return the text with escapes for control characters and for characters that UTF-8 cannot encode."""
    text = "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)
    return text.encode("utf-8", "backslashreplace").decode()


def show(value: Any) -> str:
    """Return a value as shortened YAML on one line. A list or mapping is shown only as a text such as `a list`."""
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
            text = value if len(value) <= _SHOWN else value[: _SHOWN - 1] + "…"
            return json.dumps(text, ensure_ascii=False)
        case int() | float():
            return str(value)
    return f"a {type(value).__name__}"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return `did you mean 'x'?`, or the list of known words if none is similar."""
    known = [str(k) for k in known]
    lowered = {k.lower(): k for k in reversed(known)}
    close = difflib.get_close_matches(word[:100].lower(), lowered, n=1, cutoff=0.6)
    if close:
        return f"did you mean '{lowered[close[0]]}'?"
    listed = ", ".join(known[:16]) + (", …" if len(known) > 16 else "")
    return f"use one of {listed}" if known else "there are none"
