"""Random windows of each kind, and the division of time into these windows."""

from __future__ import annotations

import datetime as dt
import random
import zoneinfo
from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from tidemill_contract import duration

Window = Mapping[str, Any]
parse_ms = lru_cache(duration.parse_ms)
_STEP_MS = 1_000


def _tumbling(rnd: random.Random) -> dict[str, Any]:
    return {"size": rnd.choice(["10s", "1m", "5m", "1h"])}


def _hopping(rnd: random.Random) -> dict[str, Any]:
    hop = rnd.choice([10, 30, 60])
    return {"size": f"{hop * rnd.choice([2, 3, 5])}s", "hop": f"{hop}s"}


def _session(rnd: random.Random) -> dict[str, Any]:
    gap = rnd.choice([2, 10, 45])
    longest = {"maxLength": f"{gap * rnd.choice([2, 7])}s"} if rnd.random() < 0.6 else {}
    return {"gap": f"{gap}s", **longest}


DRAWN: Mapping[str, Callable[[random.Random], dict[str, Any]]] = {
    "tumbling": _tumbling,
    "hopping": _hopping,
    "session": _session,
}


def draw_window(rnd: random.Random) -> dict[str, Any]:
    """Draw a window of any kind."""
    grace = rnd.choice(["0s", "0s", "5s", "1m"])
    kind = rnd.choice(list(DRAWN))
    return {"type": kind, **_shifted(rnd, kind, DRAWN[kind](rnd)), "grace": grace}


def _shifted(rnd: random.Random, kind: str, window: dict[str, Any]) -> dict[str, Any]:
    """Return the window, sometimes with an offset, or one of days or weeks in a time zone.

    Days and weeks start within the first hours of the drawn events.
    """
    if kind not in ("tumbling", "hopping") or rnd.random() < 0.6:
        return window
    if rnd.random() < 0.4:
        step = parse_ms(window.get("hop", window["size"])) // 1_000
        return {**window, "offset": f"{rnd.randrange(1, step)}s"}
    zone = rnd.choice([{"zone": "Europe/Oslo"}, {"zone": "Europe/Oslo"}, {"zone": "UTC"}])
    days = {"size": "3d", "hop": "1d"} if kind == "hopping" else {"size": "1d"}
    if kind == "tumbling" and rnd.random() < 0.3:
        return {"size": "1w", "offset": f"{144 + rnd.randint(1, 4)}h", **rnd.choice([zone, {}])}
    return {**days, **zone, "offset": rnd.choice(["1h", "2h", "150m", "3h", "4h"])}


def is_long(window: Window) -> bool:
    """Return True if a window may last for days."""
    endless = window["type"] == "session" and "maxLength" not in window
    return endless or window.get("size", "").endswith(("d", "w"))


@dataclass(frozen=True)
class Clock:
    """The starts of panes or buckets.

    Attributes:
        length: a number of milliseconds, or of days with a zone.
        offset: milliseconds after the epoch, or after midnight with a zone.
        zone: the time zone of days, or None if all panes are equally long.
        monday: whether days are counted from a Monday.
    """

    length: int
    offset: int = 0
    zone: str | None = None
    monday: bool = False

    @property
    def text(self) -> str:
        """The length as a duration of the spec, such as `5m`."""
        if self.zone is None:
            return duration.format_ms(self.length)
        return f"{self.length // 7}w" if self.monday else f"{self.length}d"

    def times(self, count: int) -> Clock:
        """Return the clock of buckets that are `count` times as long."""
        return replace(self, length=self.length * count)

    def floor(self, time: int) -> int:
        """Return the last start at or before a time."""
        if self.zone is None:
            return (time - self.offset) // self.length * self.length + self.offset
        starts = _starts(self)
        return starts[bisect_right(starts, time) - 1]

    def shift(self, start: int, count: int) -> int:
        """Return the start `count` steps later."""
        if self.zone is None:
            return start + count * self.length
        starts = _starts(self)
        return starts[starts.index(start) + count]


_ZERO, _LAST = dt.datetime(1970, 1, 1), dt.datetime(2027, 6, 1)
_QUARTER, _REACH = dt.timedelta(minutes=15), dt.timedelta(hours=14)


@lru_cache
def _starts(clock: Clock) -> list[int]:
    """Return the starts in the years around the events.

    A start is the first quarter of an hour at which local time has reached the offset after midnight.
    """
    zone = zoneinfo.ZoneInfo(str(clock.zone))
    wall = _ZERO + dt.timedelta(days=4 if clock.monday else 0, milliseconds=clock.offset)
    starts = []
    while wall < _LAST:
        wall += dt.timedelta(days=clock.length)
        if wall.year >= 2025:
            time = (wall - _REACH).replace(minute=0)
            while time.replace(tzinfo=dt.UTC).astimezone(zone).replace(tzinfo=None) < wall:
                time += _QUARTER
            starts.append((time - _ZERO) // dt.timedelta(milliseconds=1))
    return starts


def clock_of(window: Window) -> Clock:
    """Return the starts of the panes of windows. For sessions, the steps in which they close."""
    text = window.get("hop", window.get("size", ""))
    offset = parse_ms(window.get("offset", "0s"))
    if "zone" in window or text.endswith("w"):
        weeks = text.endswith("w")
        return Clock(int(text[:-1]) * (7 if weeks else 1), offset, window.get("zone", "UTC"), weeks)
    return Clock(pane_of(window), offset)


def panes_of(window: Window) -> int:
    """Return the number of panes of a window."""
    return 1 if window["size"].endswith("w") else size_of(window) // pane_of(window)


def size_of(window: Window) -> int:
    """Return the length of a window, or the maximal length of a session, in milliseconds."""
    return parse_ms(window["size"] if "size" in window else window.get("maxLength", "1d"))


def pane_of(window: Window) -> int:
    """Return the milliseconds between the starts of windows. For sessions, the step in which they close."""
    match window["type"]:
        case "session":
            return _STEP_MS
        case "hopping":
            return parse_ms(window["hop"])
    return size_of(window)
