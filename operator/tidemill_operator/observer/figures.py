"""A pipeline's figures, and their rounded form in the status."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tidemill_operator.errors import Reason

UNAVAILABLE = "FiguresUnavailable"
FRESH_SECONDS = 15.0
"""The maximum age in seconds of figures in the status."""
_SOON_SECONDS, _LATE_SECONDS = 10.0, 60.0
_MEMBERS = (
    "lag",
    "lagSeconds",
    "stageLag",
    "stageLagSeconds",
    "freshness",
    "freshnessSeconds",
    "watermarkAgeSeconds",
    "figuresAt",
)
_STEPS = (1.0, 2.0, 5.0, 10.0)
# Lags below 10 events or 5 seconds are normal between two commits. Changes below these limits do not count.
_LITTLE_EVENTS, _LITTLE_SECONDS = 10, 5.0
_MAX_MESSAGE = 1024

Status = Mapping[str, Any]


@dataclass(frozen=True)
class Figures:
    """The figures about how far a pipeline is behind.

    Freshness is None while no events arrive. The age of the watermark is None without a watermark. `stage_lag` is
    None without a Python stage.
    """

    lag: int
    lag_seconds: float
    freshness_seconds: float | None
    watermark_age_seconds: float | None
    positions_at: float
    stage_lag: int | None = None
    stage_lag_seconds: float = 0.0


@dataclass(frozen=True)
class Observation:
    """The result of an observation. `fault` says why figures are missing."""

    figures: Figures | None
    fault: str
    at: float


def status_fields(observation: Observation, shown: Status, generation: int) -> dict[str, Any]:
    """Return an observation as fields of the pipeline's status."""
    if observation.figures is None:
        return {"conditions": [_unavailable(observation, shown, generation)]}
    figures = observation.figures
    fields: dict[str, Any] = {
        "lag": coarse_count(figures.lag),
        "lagSeconds": int(coarse_seconds(figures.lag_seconds)) if figures.lag else 0,
    }
    if figures.stage_lag is not None:
        seconds = coarse_seconds(figures.stage_lag_seconds)
        fields |= {
            "stageLag": coarse_count(figures.stage_lag),
            "stageLagSeconds": int(seconds) if figures.stage_lag else 0,
        }
    if figures.freshness_seconds is not None:
        seconds = coarse_seconds(figures.freshness_seconds)
        fields |= {"freshness": duration(seconds), "freshnessSeconds": seconds}
    if figures.watermark_age_seconds is not None:
        fields["watermarkAgeSeconds"] = int(coarse_seconds(figures.watermark_age_seconds))
    if observation.at - figures.positions_at > FRESH_SECONDS:
        fields["figuresAt"] = _time(figures.positions_at)
    return fields


def observer_fields(status: Status) -> dict[str, Any]:
    """Return only those members of `status` that the observer writes."""
    members = {name: status[name] for name in _MEMBERS if name in status}
    conditions = [dict(item) for item in status.get("conditions", ()) if item["type"] == UNAVAILABLE]
    return members | ({"conditions": conditions} if conditions else {})


def non_observer_fields(status: Status) -> dict[str, Any]:
    """Return only those members of `status` that the observer does not write."""
    members = {name: value for name, value in status.items() if name not in _MEMBERS}
    if "conditions" in members:
        members["conditions"] = [item for item in members["conditions"] if item["type"] != UNAVAILABLE]
    return members


def is_write_due(shown: Status, current: Status, seconds: float) -> bool:
    """Return whether to write figures to the status, given the seconds since the last write.

    A large change is written after `_SOON_SECONDS`, and a small change after `_LATE_SECONDS`.
    A change of the condition about missing figures is written at once.
    """
    if shown == current:
        return False
    if availability_changed(shown, current) or seconds >= _LATE_SECONDS:
        return True
    return seconds >= _SOON_SECONDS and _differ_much(shown, current)


def availability_changed(shown: Status, current: Status) -> bool:
    """Return whether the condition about missing figures has appeared or disappeared."""
    return ("conditions" in shown) != ("conditions" in current)


def _differ_much(shown: Status, current: Status) -> bool:
    def steps(name: str, little: float) -> int:
        return abs(_step(shown.get(name, 0), little) - _step(current.get(name, 0), little))

    return (
        any((name in shown) != (name in current) for name in _MEMBERS)
        or steps("lagSeconds", _LITTLE_SECONDS) > 0
        or any(steps(name, _LITTLE_EVENTS) > 1 for name in ("lag", "stageLag"))
        or any(steps(name, _LITTLE_SECONDS) > 1 for name in ("freshnessSeconds", "watermarkAgeSeconds"))
    )


def _step(value: float, little: float) -> int:
    top = coarse_seconds(max(value, little))
    power = math.floor(math.log10(top) + 1e-9)
    return 3 * power + (1, 2, 5).index(round(top / 10.0**power))


def _unavailable(observation: Observation, shown: Status, generation: int) -> dict[str, Any]:
    conditions = shown.get("conditions")
    return {
        "type": UNAVAILABLE,
        "status": "True",
        "reason": str(Reason.UNREACHABLE),
        "message": observation.fault[:_MAX_MESSAGE],
        "lastTransitionTime": conditions[0]["lastTransitionTime"] if conditions else _time(observation.at),
        "observedGeneration": generation,
    }


def _time(seconds: float) -> str:
    return dt.datetime.fromtimestamp(seconds, dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def coarse_count(count: int) -> int:
    """Round a count to two digits, e.g. 12,345 → 12,000."""
    return int(float(f"{count:.1e}")) if count > 99 else count


def coarse_seconds(seconds: float) -> float:
    """Round seconds up to 1, 2 or 5 times a power of ten.

    The result is at least one second.
    """
    if seconds <= 1.0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(seconds))
    return float(next(step * power for step in _STEPS if seconds <= step * power * (1 + 1e-9)))


def duration(seconds: float) -> str:
    """Format seconds for people, rounded up: 50s, 4m, 3h, 2d."""
    for unit, length, max_number in (("s", 1, 120), ("m", 60, 120), ("h", 3600, 48)):
        if (number := math.ceil(seconds / length)) <= max_number:
            return f"{number}{unit}"
    return f"{math.ceil(seconds / 86_400)}d"
