"""What became of each thing that was to be ensured, and how many such outcomes fold into one.

Ranks are ordered: the worst one speaks for all. Folding is commutative and associative, so order never shows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from typing import Any

from tidemill_operator.errors import Reason, TidemillError


class Rank(IntEnum):
    """How far something came; a higher rank weighs more."""

    SKIPPED = 0
    DONE = 1
    WAITING = 2
    FAILED = 3


class Component(StrEnum):
    """The parts of a pipeline that have a condition each."""

    TOPICS = "topics"
    SCHEMA = "schema"
    PROCESSORS = "processors"
    INGEST = "ingest"
    API = "api"


@dataclass(frozen=True)
class Outcome:
    """What became of one thing.

    Attributes:
        rank: how far it came.
        component: which part of the pipeline it belongs to.
        name: the thing's own name, e.g. a topic's.
        reason: why, from the closed set.
        message: one line for people; names the value and what to do where something is wrong.
        changed: writes made; zero if all was as it should be.
        serving: whether it does its work meanwhile, as it was before; only of what is waited for.
        observed: facts for the status as it spells them, e.g. `partitions`.
    """

    rank: Rank
    component: Component
    name: str
    reason: Reason
    message: str = ""
    changed: int = 0
    observed: Mapping[str, Any] = field(default_factory=dict, compare=False)
    serving: bool = False


def skipped(component: Component, name: str, reason: Reason = Reason.NOT_NEEDED, message: str = "") -> Outcome:
    """Nothing was to be done."""
    return Outcome(Rank.SKIPPED, component, name, reason, message)


def done(
    component: Component,
    name: str,
    *,
    changed: int = 0,
    observed: Mapping[str, Any] | None = None,
    message: str = "",
) -> Outcome:
    """It is as it should be."""
    return Outcome(Rank.DONE, component, name, Reason.APPLIED, message, changed, observed or {})


def waiting(
    component: Component,
    name: str,
    message: str,
    *,
    changed: int = 0,
    observed: Mapping[str, Any] | None = None,
    serving: bool = False,
    reason: Reason = Reason.WAITING,
) -> Outcome:
    """It was asked for and will come."""
    return Outcome(Rank.WAITING, component, name, reason, message, changed, observed or {}, serving)


def failed(component: Component, name: str, error: TidemillError, *, changed: int = 0) -> Outcome:
    """It cannot be made so."""
    return Outcome(Rank.FAILED, component, name, error.reason, str(error), changed)


_REASONS = {reason: position for position, reason in enumerate(Reason)}


def _weight(outcome: Outcome) -> tuple[int, bool, int, str, str, str]:
    idle = not outcome.serving
    return outcome.rank, idle, _REASONS[outcome.reason], outcome.name, outcome.message, outcome.component


def combine(outcomes: Iterable[Outcome], component: Component) -> Outcome:
    """The outcome of a component as a whole: the worst of its parts, with all writes counted.

    Parts of other components are left out. Without any part it is Skipped.
    """
    own = [outcome for outcome in outcomes if outcome.component == component]
    if not own:
        return skipped(component, "")
    worst = max(own, key=_weight)
    return Outcome(
        worst.rank,
        component,
        worst.name,
        worst.reason,
        worst.message,
        sum(outcome.changed for outcome in own),
        worst.observed,
        worst.serving,
    )
