"""Finds the form of times, such as RFC 3339, a strptime pattern, or a count since 1970."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from tidemill_contract.times import read_local, read_time

MIN_FITTING_SHARE = 0.9
"""Smallest share of values that must fit a type or a form."""
_MAX_TRIED = 2000
_FIRST_TEXTS = 20
_DATES = tuple(
    (re.compile(rf"({shape})(?P<rest>\D.*)?", re.ASCII), forms)
    for shape, forms in (
        (r"\d{4}-\d{1,2}-\d{1,2}", ("%Y-%m-%d",)),
        (r"\d{4}/\d{1,2}/\d{1,2}", ("%Y/%m/%d",)),
        (r"\d{4}\.\d{1,2}\.\d{1,2}", ("%Y.%m.%d",)),
        (r"\d{1,2}\.\d{1,2}\.\d{4}", ("%d.%m.%Y",)),
        (r"\d{1,2}\.\d{1,2}\.\d\d", ("%d.%m.%y",)),
        (r"\d{1,2}/\d{1,2}/\d{4}", ("%d/%m/%Y", "%m/%d/%Y")),
        (r"\d{1,2}/\d{1,2}/\d\d", ("%d/%m/%y", "%m/%d/%y")),
        (r"\d{1,2}-\d{1,2}-\d{4}", ("%d-%m-%Y", "%m-%d-%Y")),
        (r"\d{1,2} [A-Za-z]{3} \d{4}", ("%d %b %Y",)),
        (r"\d{1,2} [A-Za-z]{3,9} \d{4}", ("%d %B %Y",)),
        (r"\d{1,2}-[A-Za-z]{3}-\d{4}", ("%d-%b-%Y",)),
        (r"\d{1,2}-[A-Za-z]{3}-\d\d", ("%d-%b-%y",)),
        (r"\d{1,2}/[A-Za-z]{3}/\d{4}", ("%d/%b/%Y",)),
        (r"[A-Za-z]{3} \d{1,2},? \d{4}", ("%b %d, %Y", "%b %d %Y")),
        (r"[A-Za-z]{3,9} \d{1,2}, \d{4}", ("%B %d, %Y",)),
        (r"[A-Za-z]{3}, \d{1,2} [A-Za-z]{3} \d{4}", ("%a, %d %b %Y",)),
    )
)
_COMPACT = (
    (re.compile(r"(19|20)\d{6}", re.ASCII), "%Y%m%d"),
    (re.compile(r"(19|20)\d{10}", re.ASCII), "%Y%m%d%H%M"),
    (re.compile(r"(19|20)\d{12}", re.ASCII), "%Y%m%d%H%M%S"),
    (re.compile(r"\d{8}T\d{6}", re.ASCII), "%Y%m%dT%H%M%S"),
    (re.compile(r"\d{8}T\d{6}(Z|[+-]\d{4})", re.ASCII), "%Y%m%dT%H%M%S%z"),
    (re.compile(r"[A-Za-z]{3} [A-Za-z]{3} [ \d]\d \d\d:\d\d:\d\d \d{4}", re.ASCII), "%a %b %d %H:%M:%S %Y"),
    (re.compile(r"[A-Za-z]{3} [A-Za-z]{3} \d\d \d\d:\d\d:\d\d [+-]\d{4} \d{4}", re.ASCII), "%a %b %d %H:%M:%S %z %Y"),
)
_CLOCK = re.compile(
    r"(?P<gap>[T:_]|,? | - )(?P<hour>\d{1,2}):\d\d(?P<seconds>:\d\d)?(?P<fraction>[.,]\d{1,6})?"
    r"(?P<half> ?[AaPp][Mm])?(?P<zone> ?(?:[+-]\d\d:?\d\d|Z))?(?P<word> Uhr| GMT| UTC)?",
    re.ASCII,
)
_TIME_NAME = re.compile(
    r"(^|[_.\s])(at|ts|t|on|time|times|timestamp|date|datetime|day|epoch|created|updated|modified|since|when"
    r"|datum|zeit|zeitpunkt|zeitstempel|uhrzeit|tag|erstellt|geaendert)($|[_.\s])|(time|date|stamp|datum|zeit)$"
)
_UNITS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
_YEAR_1990, _YEAR_2005, _YEAR_2100 = 631_152_000, 1_104_537_600, 4_102_444_800
"""The beginning of 1990, 2005 and 2100, in seconds since 1970."""


@dataclass(frozen=True)
class TimeForm:
    """The form in which times are written.

    Attributes:
        format: the format, as written in the spec, or None for RFC 3339 and epoch milliseconds.
        local: whether the times have no zone.
        date_only: whether the values are dates without a time of day.
        ambiguous: whether the order of day and month is unknown.
    """

    format: str | None = None
    local: bool = False
    date_only: bool = False
    ambiguous: bool = False


def find_text_form(texts: Mapping[str, int], *, month_first: bool) -> TimeForm | None:
    """Return the form of the times in `texts`, or None if the texts are not times.

    Args:
        texts: the number of occurrences of each text.
        month_first: if no text shows the order, whether `03/04/2026` is in March.
    """
    tried = dict(islice(texts.items(), _MAX_TRIED))
    if not tried or not any(map(_looks_like_time, islice(tried, _FIRST_TEXTS))):
        return None
    if _fitting_share(tried, read_time) >= MIN_FITTING_SHARE:
        date_only = all(len(text) == 10 for text in tried)
        return TimeForm(local=date_only, date_only=date_only)
    if _fitting_share(tried, lambda text: read_local(text, dt.UTC)) >= MIN_FITTING_SHARE:
        return TimeForm(local=True)
    shares: dict[str, float] = {}
    for pattern in dict.fromkeys(form for text in islice(tried, _FIRST_TEXTS) for form in _patterns(text)):
        shares[pattern] = _fitting_share(tried, _pattern_reader(pattern))
    best = max(shares.values(), default=0.0)
    if best < MIN_FITTING_SHARE:
        return None
    fitting = [pattern for pattern, share in shares.items() if share == best]
    month_patterns = [pattern for pattern in fitting if pattern.startswith("%m")]
    ambiguous = 0 < len(month_patterns) < len(fitting)
    chosen = month_patterns[0] if month_patterns and (month_first or not ambiguous) else fitting[0]
    return TimeForm(
        chosen, local="%z" not in chosen, date_only="%H" not in chosen and "%I" not in chosen, ambiguous=ambiguous
    )


def find_epoch_form(numbers: Sequence[float], name: str) -> TimeForm | None:
    """Return the unit of epoch times, such as ms, or None if the numbers are not times.

    If `name` suggests no time, the numbers must be times since 2005. Their unit must be ms, us or ns.
    """
    low, high = min(numbers, default=0), max(numbers, default=0)
    is_time_name = suggests_time(name)
    for unit, scale in _UNITS.items():
        since = _YEAR_1990 if is_time_name else _YEAR_2005
        if since * scale <= low and high <= _YEAR_2100 * scale and (is_time_name or unit != "s"):
            return TimeForm(None if unit == "ms" else unit)
    return None


def suggests_time(name: str) -> bool:
    """Return whether the name of a field suggests a time."""
    return _TIME_NAME.search(name) is not None


def _looks_like_time(text: str) -> bool:
    return 6 <= len(text) <= 40 and sum(character.isdigit() for character in text) >= 4


def _fitting_share(texts: Mapping[str, int], read: Callable[[str], Any]) -> float:
    fitting = 0
    for text, count in texts.items():
        try:
            read(text)
        except ValueError:
            continue
        fitting += count
    return fitting / sum(texts.values())


def _pattern_reader(pattern: str) -> Callable[[str], dt.datetime]:
    def read(text: str) -> dt.datetime:
        time = dt.datetime.strptime(text, pattern)
        if not 1900 <= time.year <= 2200:
            raise ValueError(text)
        return time

    return read


def _patterns(text: str) -> list[str]:
    patterns = [form for shape, form in _COMPACT if shape.fullmatch(text)]
    for shape, forms in _DATES:
        match = shape.fullmatch(text)
        if match is None:
            continue
        rest = match["rest"] or ""
        clock = _clock_pattern(rest) if rest else ""
        patterns += [form + clock for form in forms] if clock is not None else []
    return patterns


def _clock_pattern(text: str) -> str | None:
    match = _CLOCK.fullmatch(text)
    if match is None:
        return None
    form = match["gap"] + ("%I:%M" if match["half"] else "%H:%M") + (":%S" if match["seconds"] else "")
    if match["fraction"]:
        form += f"{match['fraction'][0]}%f"
    if match["half"]:
        form += " %p" if match["half"].startswith(" ") else "%p"
    if match["zone"]:
        form += " %z" if match["zone"].startswith(" ") else "%z"
    return form + (match["word"] or "")
