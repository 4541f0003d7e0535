"""The keeper's part of /health: which tasks fail, and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tidemill_processor.keeper.duties import Duty, DutyFailure
from tidemill_processor.keeper.keeper import Keeper

_MAX_TEXTS = 16
_LASTING_ATTEMPTS = 3
"""The process is `degraded` after a task has failed this many times in a row."""
_KINDS_BY_FIELD = {
    "closing": ("close",),
    "scanning": ("scan", "rescore"),
    "publishing": ("dead letters", "anomalies", "publish", "corrections"),
    "live": ("live",),
    "forgetting": ("forget",),
}
_IF_FAILING = ("forgetting",)
"""Tasks that /health shows only if they fail, because few pipelines have these tasks."""


@dataclass(frozen=True)
class KeeperHealth:
    """The keeper's part of /health, and whether the process is `degraded`."""

    fields: dict[str, Any]
    degraded: bool = False


def keeper_health(keeper: Keeper | None) -> KeeperHealth:
    """Return what /health says about the keeper. A replay has no keeper, so publishing is `replaying`."""
    if keeper is None:
        return KeeperHealth({"publishing": "replaying"})
    error = keeper.error
    if keeper.ident is not None and not keeper.is_alive():
        error = error or "the keeper's thread has ended; restart the process"
    failures = keeper.runner.failures
    fields: dict[str, Any] = {"keeper": error or "ok"}
    for field, kinds in _KINDS_BY_FIELD.items():
        texts = [_text(duty, failure) for duty, failure in failures.items() if duty.kind in kinds]
        more = [f"and {len(texts) - _MAX_TEXTS} more"] if len(texts) > _MAX_TEXTS else []
        if not texts and field in _IF_FAILING:
            continue
        fields[field] = "; ".join([*texts[:_MAX_TEXTS], *more]) or "ok"
    lasting = any(failure.permanent or failure.tries >= _LASTING_ATTEMPTS for failure in failures.values())
    return KeeperHealth(fields, bool(error) or lasting)


def _text(duty: Duty, failure: DutyFailure) -> str:
    return f"{duty.aggregation or duty.kind}: {failure.reason}"
