"""The keeper's part of /health: which duties of which aggregations fail, and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tidemill_processor.keeper.duties import Duty, Trouble
from tidemill_processor.keeper.keeper import Keeper

_MOST = 16
_LASTING = 3
"""Fewer failures in a row, e.g. timeouts of a lock, do not make the process `degraded`."""
_WORDS = {
    "closing": ("close",),
    "scanning": ("scan", "rescore"),
    "publishing": ("dead letters", "anomalies", "publish", "corrections"),
    "live": ("live",),
}


@dataclass(frozen=True)
class Standing:
    """Members of /health, and whether they make it `degraded`."""

    told: dict[str, Any]
    degraded: bool = False


def standing(keeper: Keeper | None) -> Standing:
    """Return the keeper's state; for None: there is no keeper, because the process replays."""
    if keeper is None:
        return Standing({"publishing": "replaying"})
    error = keeper.error
    if keeper.ident is not None and not keeper.is_alive():
        error = error or "its thread has ended; restart the process"
    troubles = keeper.trials.troubles
    told: dict[str, Any] = {"keeper": error or "ok"}
    for word, kinds in _WORDS.items():
        found = [_text(duty, trouble) for duty, trouble in troubles.items() if duty.kind in kinds]
        more = [f"and {len(found) - _MOST} more"] if len(found) > _MOST else []
        told[word] = "; ".join([*found[:_MOST], *more]) or "ok"
    lasting = any(trouble.fault or trouble.tries >= _LASTING for trouble in troubles.values())
    return Standing(told, bool(error) or lasting)


def _text(duty: Duty, trouble: Trouble) -> str:
    return f"{duty.aggregation or duty.kind}: {trouble.reason}"
