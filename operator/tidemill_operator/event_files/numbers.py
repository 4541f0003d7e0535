"""Reads numbers with a decimal comma, with groups of digits, or with a currency."""

from __future__ import annotations

import re
from collections.abc import Iterable

POINT, COMMA = ".", ","
NULLS = frozenset({"", "-", "n/a", "na", "nan", "null", "none", "nil", "\\n", "#n/a", "#na", "?"})
"""Lower-case texts for missing values, such as `n/a`. In string columns, only the empty text is a
missing value."""
BOOLEANS = {
    **dict.fromkeys(("true", "yes", "ja", "wahr", "oui", "y", "t", "1"), True),
    **dict.fromkeys(("false", "no", "nein", "falsch", "non", "n", "f", "0"), False),
}
_UNITS = "€$£¥% \t\u00a0\u202f"
_GROUPS = "'\u2019 \u00a0\u202f"
_NUMBER = {
    mark: re.compile(
        rf"([+-]?)((?:[1-9]\d{{0,2}}(?:[{group}{_GROUPS}]\d{{3}})+)|\d*)(?:{re.escape(mark)}(\d*))?([eE][+-]?\d{{1,3}})?",
        re.ASCII,
    )
    for mark, group in ((POINT, COMMA), (COMMA, POINT))
}
_PLAIN = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?", re.ASCII)


def read_number(text: str, decimal: str) -> str | None:
    """Return the text as a JSON number with the same digits.

    If the text is not a number, return None.
    """
    if decimal == POINT and _PLAIN.fullmatch(text):
        return text
    match = _NUMBER[decimal].fullmatch(text.strip(_UNITS))
    if match is None:
        return None
    sign, integer, fraction, exponent = match.groups()
    if not integer and not fraction:
        return None
    digits = re.sub(r"\D", "", integer).lstrip("0") or "0"
    return f"{'-' if sign == '-' else ''}{digits}{f'.{fraction}' if fraction else ''}{exponent or ''}"


def find_decimal(texts: Iterable[str]) -> str | None:
    """Return the decimal mark of the texts, or None if it is unclear, as in `1,234`."""
    votes = {POINT: 0, COMMA: 0}
    for text in texts:
        if POINT not in text and COMMA not in text:
            continue
        readable = {mark for mark in votes if read_number(text, mark) is not None}
        if len(readable) == 1:
            votes[readable.pop()] += 1
    if votes[POINT] == votes[COMMA]:
        return None
    return max(votes, key=lambda mark: votes[mark])
