"""Learns the usual value for each hour of the day or week.

The usual value is the mean over the latest occurrences of the hour. A rhythm is a dict with these keys:

- hour: the number of the current hour since the epoch.
- count, sum: the number and the sum of the values in the current hour.
- usual: for each hour of the day or week, [occurrences of the hour, mean] or null.
"""

from __future__ import annotations

from tidemill_processor.detect.detectors.reading import State

HOUR_MS = 3_600_000
HOURS = {"day": 24, "week": 168}
OCCURRENCES = 7
"""The usual value is the mean over about this many occurrences of an hour."""
ENOUGH = 2
"""The usual value is known after the hour has occurred this many times."""


def start(period: str) -> State:
    """Return an empty rhythm."""
    return {"hour": -1, "count": 0, "sum": 0.0, "usual": [None] * HOURS[period]}


def usual(rhythm: State, at_ms: int) -> float | None:
    """Return the usual value for this time, or None if the usual value is not known yet."""
    entry = rhythm["usual"][at_ms // HOUR_MS % len(rhythm["usual"])]
    return entry[1] if entry and entry[0] >= ENOUGH else None


def learn(rhythm: State, at_ms: int, value: float) -> State:
    """Add a value, and return the new rhythm. Ignore a value that is 1 to 23 hours before the current hour."""
    hour = at_ms // HOUR_MS
    if hour == rhythm["hour"]:
        return {**rhythm, "count": rhythm["count"] + 1, "sum": rhythm["sum"] + value}
    # A value that is 24 hours or more before the current hour starts a new current hour.
    if rhythm["count"] and 0 < rhythm["hour"] - hour < HOURS["day"]:
        return rhythm
    return {"hour": hour, "count": 1, "sum": value, "usual": _settled(rhythm) if rhythm["count"] else rhythm["usual"]}


def _settled(rhythm: State) -> list[list[float] | None]:
    mean = rhythm["sum"] / rhythm["count"]
    place = rhythm["hour"] % len(rhythm["usual"])
    times, before = rhythm["usual"][place] or (0, 0.0)
    after = before + max(1 / (times + 1), 1 / OCCURRENCES) * (mean - before)
    settled = list(rhythm["usual"])
    settled[place] = [min(times + 1, OCCURRENCES), float(f"{after:.9g}")]
    return settled
