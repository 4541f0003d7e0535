"""A pipeline's figures and how a status tells them: in coarse steps, as each change is a write. Pure.

Exact values are metrics.
"""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tidemill_operator.errors import Reason

UNAVAILABLE = "FiguresUnavailable"
FRESH_SECONDS = 15.0
"""Figures that are older are not shown."""
_SOON_SECONDS, _LATE_SECONDS = 10.0, 60.0
_MEMBERS = ("lag", "lagSeconds", "freshness", "freshnessSeconds", "watermarkAgeSeconds", "figuresAt")
_STEPS = (1.0, 2.0, 5.0, 10.0)
# What is under way between two commits.
_LITTLE_EVENTS, _LITTLE_SECONDS = 10, 5.0
_MAX_MESSAGE = 1024

Status = Mapping[str, Any]


@dataclass(frozen=True)
class Figures:
    """What a pipeline has not done yet.

    Attributes:
        lag: events in the topic that are not counted.
        lag_seconds: since the arrival of the oldest of them; 0: there is none.
        freshness_seconds: from an event's arrival to the commit that counts it; None: nothing arrives.
        watermark_age_seconds: how far the watermark is behind the wall clock; None: there is none yet.
        positions_at: when Postgres told how far processors are, epoch seconds; long ago if it does not answer.
    """

    lag: int
    lag_seconds: float
    freshness_seconds: float | None
    watermark_age_seconds: float | None
    positions_at: float


@dataclass(frozen=True)
class Seen:
    """What an observer knows of a pipeline.

    Attributes:
        figures: None: there are none that are fresh.
        fault: why there are none.
        at: epoch seconds.
    """

    figures: Figures | None
    fault: str
    at: float


def told(seen: Seen, shown: Status, generation: int) -> dict[str, Any]:
    """What a status is to say.

    Args:
        seen: what is known.
        shown: what it says now, of these members.
        generation: of the spec that runs.
    """
    if seen.figures is None:
        return {"conditions": [_unavailable(seen, shown, generation)]}
    figures = seen.figures
    found: dict[str, Any] = {
        "lag": coarse_count(figures.lag),
        "lagSeconds": int(coarse_seconds(figures.lag_seconds)) if figures.lag else 0,
    }
    if figures.freshness_seconds is not None:
        seconds = coarse_seconds(figures.freshness_seconds)
        found |= {"freshness": duration(seconds), "freshnessSeconds": seconds}
    if figures.watermark_age_seconds is not None:
        found["watermarkAgeSeconds"] = int(coarse_seconds(figures.watermark_age_seconds))
    if seen.at - figures.positions_at > FRESH_SECONDS:
        found["figuresAt"] = _time(figures.positions_at)
    return found


def shown_by(status: Status) -> dict[str, Any]:
    """What of a status is told here."""
    found = {name: status[name] for name in _MEMBERS if name in status}
    conditions = [dict(item) for item in status.get("conditions", ()) if item["type"] == UNAVAILABLE]
    return found | ({"conditions": conditions} if conditions else {})


def others(status: Status) -> dict[str, Any]:
    """What of a status is not told here."""
    found = {name: value for name, value in status.items() if name not in _MEMBERS}
    if "conditions" in found:
        found["conditions"] = [item for item in found["conditions"] if item["type"] != UNAVAILABLE]
    return found


def is_news(shown: Status, found: Status, seconds: float) -> bool:
    """Whether a status is to be written: much that changed at once, little now and then, nothing never.

    Args:
        shown: what it says.
        found: what it could say.
        seconds: since it was written last.
    """
    if shown == found:
        return False
    if changed(shown, found) or seconds >= _LATE_SECONDS:
        return True
    return seconds >= _SOON_SECONDS and _differ_much(shown, found)


def changed(shown: Status, found: Status) -> bool:
    """Whether figures have become known, or are not known any more."""
    return ("conditions" in shown) != ("conditions" in found)


def _differ_much(shown: Status, found: Status) -> bool:
    """Any step of an age that grows while nothing moves, more than one of what comes and goes."""

    def steps(name: str, little: float) -> int:
        return abs(_step(shown.get(name, 0), little) - _step(found.get(name, 0), little))

    return (
        any((name in shown) != (name in found) for name in _MEMBERS)
        or steps("lagSeconds", _LITTLE_SECONDS) > 0
        or steps("lag", _LITTLE_EVENTS) > 1
        or any(steps(name, _LITTLE_SECONDS) > 1 for name in ("freshnessSeconds", "watermarkAgeSeconds"))
    )


def _step(value: float, little: float) -> int:
    """Its place among 1, 2, 5, 10, 20, 50, …; all that is little has one."""
    top = coarse_seconds(max(value, little))
    power = math.floor(math.log10(top) + 1e-9)
    return 3 * power + (1, 2, 5).index(round(top / 10.0**power))


def _unavailable(seen: Seen, shown: Status, generation: int) -> dict[str, Any]:
    known = shown.get("conditions")
    return {
        "type": UNAVAILABLE,
        "status": "True",
        "reason": str(Reason.UNREACHABLE),
        "message": seen.fault[:_MAX_MESSAGE],
        "lastTransitionTime": known[0]["lastTransitionTime"] if known else _time(seen.at),
        "observedGeneration": generation,
    }


def _time(seconds: float) -> str:
    return dt.datetime.fromtimestamp(seconds, dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def coarse_count(count: int) -> int:
    """A count to two digits, e.g. 12,345 → 12,000."""
    return int(float(f"{count:.1e}")) if count > 99 else count


def coarse_seconds(seconds: float) -> float:
    """A duration rounded up to 1, 2 or 5 times a power of ten, at least a second."""
    if seconds <= 1.0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(seconds))
    return float(next(step * power for step in _STEPS if seconds <= step * power * (1 + 1e-9)))


def duration(seconds: float) -> str:
    """For people, rounded up: 50s, 4m, 3h, 2d."""
    for unit, length, most in (("s", 1, 120), ("m", 60, 120), ("h", 3600, 48)):
        if (number := math.ceil(seconds / length)) <= most:
            return f"{number}{unit}"
    return f"{math.ceil(seconds / 86_400)}d"
