"""Learns the usual value for each hour of the day or week.

The usual value is the mean over the latest occurrences of the hour. A profile is a dict with these keys:

- hour: the number of the current hour since the epoch.
- count, sum: the number and the sum of the values in the current hour.
- usual: for each hour of the day or week, [occurrences of the hour, mean] or null.
"""

from __future__ import annotations

from tidemill_processor.detect.detectors.reading import State

HOUR_MS = 3_600_000
HOURS = {"day": 24, "week": 168}
AVERAGED_OCCURRENCES = 7
"""The usual value is the mean over about this many occurrences of an hour."""
MIN_OCCURRENCES = 2
"""The usual value is known after the hour has occurred this many times."""


def empty(period: str) -> State:
    """Return an empty profile."""
    return {"hour": -1, "count": 0, "sum": 0.0, "usual": [None] * HOURS[period]}


def usual_value(profile: State, at_ms: int) -> float | None:
    """Return the usual value for this time, or None if the usual value is not known yet."""
    entry = profile["usual"][at_ms // HOUR_MS % len(profile["usual"])]
    return entry[1] if entry and entry[0] >= MIN_OCCURRENCES else None


def learn(profile: State, at_ms: int, value: float) -> State:
    """Add a value, and return the new profile. Ignore a value that is 1 to 23 hours before the current hour."""
    hour = at_ms // HOUR_MS
    if hour == profile["hour"]:
        return {**profile, "count": profile["count"] + 1, "sum": profile["sum"] + value}
    # A value that is 24 hours or more before the current hour starts a new current hour.
    if profile["count"] and 0 < profile["hour"] - hour < HOURS["day"]:
        return profile
    return {
        "hour": hour,
        "count": 1,
        "sum": value,
        "usual": _finish_hour(profile) if profile["count"] else profile["usual"],
    }


def _finish_hour(profile: State) -> list[list[float] | None]:
    mean = profile["sum"] / profile["count"]
    index = profile["hour"] % len(profile["usual"])
    occurrences, before = profile["usual"][index] or (0, 0.0)
    after = before + max(1 / (occurrences + 1), 1 / AVERAGED_OCCURRENCES) * (mean - before)
    usual_values = list(profile["usual"])
    usual_values[index] = [min(occurrences + 1, AVERAGED_OCCURRENCES), float(f"{after:.9g}")]
    return usual_values
