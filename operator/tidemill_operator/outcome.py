"""The outcomes of reconciling objects, such as a topic or a workload."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from typing import Any

from tidemill_operator.errors import Reason, TidemillError


class Rank(IntEnum):
    """How far an object is from its desired state. A higher number is worse."""

    SKIPPED = 0
    DONE = 1
    WAITING = 2
    FAILED = 3


class Component(StrEnum):
    """The components of a pipeline."""

    TOPICS = "topics"
    SCHEMA = "schema"
    PROCESSORS = "processors"
    INGEST = "ingest"
    API = "api"
    CONNECTORS = "connectors"
    LOOKUPS = "lookups"


COMPONENT_OF_WORKLOAD: Mapping[str, Component] = {
    "processor": Component.PROCESSORS,
    "replay": Component.PROCESSORS,
    "stage": Component.PROCESSORS,
    "ingest": Component.INGEST,
    "mqtt": Component.INGEST,
    "api": Component.API,
    "connect": Component.CONNECTORS,
}
"""The component to which each kind of workload belongs."""


@dataclass(frozen=True)
class Outcome:
    """The outcome of reconciling one object.

    Attributes:
        observed: facts about the object for the status, such as the number of partitions of a topic.
        serving: whether the component works while this object has the rank WAITING.
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
    """Return a Skipped outcome."""
    return Outcome(Rank.SKIPPED, component, name, reason, message)


def done(
    component: Component,
    name: str,
    *,
    changed: int = 0,
    observed: Mapping[str, Any] | None = None,
    message: str = "",
) -> Outcome:
    """Return a Done outcome."""
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
    """Return a Waiting outcome."""
    return Outcome(Rank.WAITING, component, name, reason, message, changed, observed or {}, serving)


def with_missing_keys(outcome: Outcome, missing: Iterable[tuple[str, str]]) -> Outcome:
    """If keys of the user's Secrets are missing, return a Waiting outcome instead of a Done outcome."""
    missing_keys = ", ".join(f"Secret {secret} has no key {key}" for secret, key in sorted(set(missing)))
    if not missing_keys or outcome.rank is not Rank.DONE:
        return outcome
    message = f"{missing_keys}; add the key for {outcome.name}"
    return waiting(outcome.component, outcome.name, message, changed=outcome.changed, serving=True, reason=Reason.STUCK)


def failed(component: Component, name: str, error: TidemillError, *, changed: int = 0) -> Outcome:
    """Return a Failed outcome."""
    return Outcome(Rank.FAILED, component, name, error.reason, str(error), changed)


_REASONS = {reason: position for position, reason in enumerate(Reason)}


def _severity(outcome: Outcome) -> tuple[int, bool, int, str, str, str]:
    idle = not outcome.serving
    return outcome.rank, idle, _REASONS[outcome.reason], outcome.name, outcome.message, outcome.component


def combine(outcomes: Iterable[Outcome], component: Component) -> Outcome:
    """Return the worst outcome of a component. The field `changed` is the sum over the component's outcomes."""
    own = [outcome for outcome in outcomes if outcome.component == component]
    if not own:
        return skipped(component, "")
    worst = max(own, key=_severity)
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
