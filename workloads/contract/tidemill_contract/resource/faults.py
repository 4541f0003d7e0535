"""Faults of a resource: where, what, and what to do. And how values and near-misses are shown in them."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

_SHOWN = 60


class Absent:
    """The type of ABSENT: a fault without a value to show."""


ABSENT = Absent()


@dataclass(frozen=True)
class Fault:
    """One fault.

    Attributes:
        path: e.g. `spec.aggregations[0].window.size`; empty: the document as a whole.
        value: what was found there; ABSENT if nothing was.
        message: what is wrong with it.
        remedy: what to do.
    """

    path: str
    value: Any
    message: str
    remedy: str

    def __str__(self) -> str:
        """`path: message (got value); remedy`, always on one line."""
        got = "" if isinstance(self.value, Absent) else f" (got {show(self.value)})"
        where = f"{self.path}: " if self.path else ""
        return one_line(f"{where}{self.message}{got}; {self.remedy}")


def one_line(text: str) -> str:
    """The text with control characters and what cannot be encoded written as escapes."""
    text = "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)
    return text.encode("utf-8", "backslashreplace").decode()


def show(value: Any) -> str:
    """A value as YAML would write it on one line, shortened; a list or mapping only by its kind."""
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
    """`did you mean 'x'?` or, with nothing close, the list of what is known."""
    known = [str(k) for k in known]
    lowered = {k.lower(): k for k in reversed(known)}
    close = difflib.get_close_matches(word[:100].lower(), lowered, n=1, cutoff=0.6)
    if close:
        return f"did you mean '{lowered[close[0]]}'?"
    listed = ", ".join(known[:16]) + (", …" if len(known) > 16 else "")
    return f"known are {listed}" if known else "there are none"
