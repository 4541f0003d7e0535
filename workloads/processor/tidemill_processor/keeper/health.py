"""The keeper's part of /health: which tasks fail, and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tidemill_processor.keeper.duties import Duty, Trouble
from tidemill_processor.keeper.keeper import Keeper

_MOST = 16
_LASTING = 3
"""The process is `degraded` after a task has failed this many times in a row."""
_WORDS = {
    "closing": ("close",),
    "scanning": ("scan", "rescore"),
    "publishing": ("dead letters", "anomalies", "publish", "corrections"),
    "live": ("live",),
    "forgetting": ("forget",),
}
_IF_FAILING = ("forgetting",)
"""Tasks that /health shows only if they fail, because few pipelines have these tasks."""


@dataclass(frozen=True)
class Standing:
    """The keeper's part of /health, and whether the process is `degraded`."""

    fields: dict[str, Any]
    degraded: bool = False


def standing(keeper: Keeper | None) -> Standing:
    """Return what /health says about the keeper. A replay has no keeper, so publishing is `replaying`."""
    if keeper is None:
        return Standing({"publishing": "replaying"})
    error = keeper.error
    if keeper.ident is not None and not keeper.is_alive():
        error = error or "the keeper's thread has ended; restart the process"
    troubles = keeper.trials.troubles
    fields: dict[str, Any] = {"keeper": error or "ok"}
    for word, kinds in _WORDS.items():
        texts = [_text(duty, trouble) for duty, trouble in troubles.items() if duty.kind in kinds]
        more = [f"and {len(texts) - _MOST} more"] if len(texts) > _MOST else []
        if not texts and word in _IF_FAILING:
            continue
        fields[word] = "; ".join([*texts[:_MOST], *more]) or "ok"
    lasting = any(trouble.fault or trouble.tries >= _LASTING for trouble in troubles.values())
    return Standing(fields, bool(error) or lasting)


def _text(duty: Duty, trouble: Trouble) -> str:
    return f"{duty.aggregation or duty.kind}: {trouble.reason}"
