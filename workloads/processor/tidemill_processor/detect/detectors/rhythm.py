"""What is usual at an hour of the day or week: the mean of each hour over its last occurrences.

A rhythm is {"hour", "count", "sum", "usual"}: the present hour since the epoch, its values so far, and for each hour
[occurrences, mean] or null. An hour counts as one occurrence, however many values it has.
"""

from __future__ import annotations

from tidemill_processor.detect.detectors.reading import State

HOUR_MS = 3_600_000
HOURS = {"day": 24, "week": 168}
OCCURRENCES = 7
"""So many occurrences of an hour are remembered (older ones fade)."""
ENOUGH = 2
"""An hour is known once it has been there so often."""


def start(period: str) -> State:
    """A rhythm that knows nothing yet."""
    return {"hour": -1, "count": 0, "sum": 0.0, "usual": [None] * HOURS[period]}


def usual(rhythm: State, at_ms: int) -> float | None:
    """What is usual at a time; None while it is not known."""
    known = rhythm["usual"][at_ms // HOUR_MS % len(rhythm["usual"])]
    return known[1] if known and known[0] >= ENOUGH else None


def learn(rhythm: State, at_ms: int, value: float) -> State:
    """The rhythm with one more value. One of an hour that is over by less than a day comes too late for it."""
    hour = at_ms // HOUR_MS
    if hour == rhythm["hour"]:
        return {**rhythm, "count": rhythm["count"] + 1, "sum": rhythm["sum"] + value}
    # A clock that was set back further goes on from there.
    if rhythm["count"] and 0 < rhythm["hour"] - hour < HOURS["day"]:
        return rhythm
    return {"hour": hour, "count": 1, "sum": value, "usual": _settled(rhythm) if rhythm["count"] else rhythm["usual"]}


def _settled(rhythm: State) -> list[list[float] | None]:
    """The hours' means once the present hour is over."""
    mean = rhythm["sum"] / rhythm["count"]
    place = rhythm["hour"] % len(rhythm["usual"])
    times, before = rhythm["usual"][place] or (0, 0.0)
    after = before + max(1 / (times + 1), 1 / OCCURRENCES) * (mean - before)
    settled = list(rhythm["usual"])
    settled[place] = [min(times + 1, OCCURRENCES), float(f"{after:.9g}")]
    return settled
