"""Convert outcomes to the resource's status, which has a limited size."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tidemill_operator.errors import Reason, TidemillError
from tidemill_operator.outcome import Component, Outcome, Rank, combine

CONDITIONS: Mapping[Component, str] = {
    Component.TOPICS: "TopicsReady",
    Component.SCHEMA: "SchemaReady",
    Component.PROCESSORS: "ProcessorsReady",
    Component.INGEST: "IngestReady",
    Component.API: "APIReady",
    Component.CONNECTORS: "ConnectorsReady",
    Component.LOOKUPS: "LookupsReady",
}
_OPTIONAL = frozenset({Component.CONNECTORS, Component.LOOKUPS})
"""The components that have no condition if the pipeline does not use them."""
_COMPONENT_OF_REASON = {Reason.STAGE_WAITS: Component.PROCESSORS, Reason.LOOKUP_UNREAD: Component.LOOKUPS}
"""Maps a reason for uncounted events to the component whose condition becomes False."""
FAILING, PAUSED, PROGRESSING = "WindowsFailing", "ReconciliationPaused", "Progressing"
# A component with one of these reasons needs no further change.
_SETTLED = frozenset({Reason.APPLIED, Reason.NOT_NEEDED, Reason.SUSPENDED})
_USER_ACTION_REASONS = frozenset({
    Reason.INVALID_SPEC,
    Reason.NOT_SUPPORTED,
    Reason.RESOURCE_CONFLICT,
    Reason.REFUSED,
    Reason.DATA_LOSS,
    Reason.STUCK,
})  # fmt: skip
_MAX_MESSAGE = 1024
_MAX_ITEMS = 16

Condition = dict[str, Any]


@dataclass(frozen=True)
class Report:
    """The report of one pass over a resource.

    Attributes:
        stalled: the errors that keep the resource's spec from running.
        progress_error: the reason why waiting events are not counted, or None if events are counted.
        loss_errors: errors about lost events, or None if this was not checked.
        quota_errors: errors about used-up quotas, or None if this was not checked.
        failure_errors: errors about windows that cannot be closed or published, or None if this was not checked.
    """

    generation: int
    outcomes: Sequence[Outcome] = ()
    stalled: Sequence[TidemillError] = ()
    spec_checked: bool = True
    progress_error: TidemillError | None = None
    has_observer: bool = False
    loss_errors: Sequence[TidemillError] | None = None
    quota_errors: Sequence[TidemillError] | None = None
    failure_errors: Sequence[TidemillError] | None = None
    accepted: bool = True
    suspended: bool = False
    paused: bool = False
    rebalanced: str = ""
    topics: Sequence[Mapping[str, Any]] = ()
    schema: str = ""
    endpoints: Mapping[str, str] = field(default_factory=dict)
    aggregations: Sequence[Mapping[str, Any]] = ()
    credentials: Mapping[str, Any] = field(default_factory=dict)
    replay: Mapping[str, Any] | None = None
    connectors: Sequence[Mapping[str, Any]] | None = None


def new_status(previous: Mapping[str, Any] | None, report: Report, now: dt.datetime) -> dict[str, Any]:
    """Return the new status, which equals `previous` if nothing changed."""
    before = {condition["type"]: condition for condition in (previous or {}).get("conditions", ())}
    paused = _condition(PAUSED, "True", "Paused", "nothing is changed until the annotation is removed")
    if report.paused and not report.outcomes:
        others = [condition for name, condition in before.items() if name != PAUSED]
        return {**(previous or {}), "conditions": [*others, _dated(paused, before, report.generation, now)]}
    generation = int((previous or {}).get("observedGeneration", 0)) if report.paused else report.generation
    reported = [component for component in CONDITIONS if _has_condition(component, report)]
    parts = [_component_condition(component, report, before) for component in reported]
    error_conditions = [
        *_error_condition("EventsLost", report.loss_errors, before),
        *_error_condition("QuotaUsedUp", report.quota_errors, before),
        *_error_condition(FAILING, report.failure_errors, before),
    ]
    abnormal = _abnormal_conditions(parts, report, before)
    conditions = [
        _ready_condition(parts, report),
        _progressing_condition(abnormal),
        *parts,
        *abnormal,
        *error_conditions,
        *([paused] if report.paused else []),
    ]
    result: dict[str, Any] = {
        "observedGeneration": generation,
        "conditions": [_dated(condition, before, generation, now) for condition in conditions],
        "endpoints": dict(report.endpoints) or (previous or {}).get("endpoints", {}),
        "topics": [dict(item) for item in report.topics][:_MAX_ITEMS] or (previous or {}).get("topics", []),
        "rebalancedAt": report.rebalanced or (previous or {}).get("rebalancedAt", ""),
        "credentials": dict(report.credentials) or (previous or {}).get("credentials", {}),
        "schema": report.schema or (previous or {}).get("schema", ""),
        "aggregations": [dict(item) for item in report.aggregations][:_MAX_ITEMS]
        or (previous or {}).get("aggregations", []),
        "replay": (previous or {}).get("replay", {}) if report.replay is None else dict(report.replay),
        "connectors": (previous or {}).get("connectors", [])
        if report.connectors is None
        else [dict(item) for item in report.connectors][:_MAX_ITEMS],
    }
    return {key: value for key, value in result.items() if value not in ({}, [], "")}


def new_version_messages(previous: Mapping[str, Any] | None, status: Mapping[str, Any], pipeline: str) -> Iterator[str]:
    """Yield a message for each aggregation whose new version is now in use."""
    before = {item["name"]: item["version"] for item in (previous or {}).get("aggregations", ())}
    filled = ((previous or {}).get("replay") or {}).get("versions", {})
    for item in status.get("aggregations", ()):
        name, version = item["name"], item["version"]
        if before.get(name, version) == version:
            continue
        if filled.get(name) == version:
            yield f"aggregation {name}: version {version} is in force, which a replay has filled"
            continue
        kept = f"earlier windows are kept as v{before[name]}"
        fill = f"`tidemill replay {pipeline} --aggregation {name}` fills v{version}"
        yield f"aggregation {name}: version {version} counts from now on; {kept}; {fill}"


def not_counting_status(previous: Mapping[str, Any], error: TidemillError, now: dt.datetime) -> dict[str, Any]:
    """Return the status with Ready false, because events are no longer counted."""
    before = {condition["type"]: condition for condition in previous.get("conditions", ())}
    ready = before.get("Ready")
    if ready is None or ready["status"] != "True":
        return dict(previous)
    generation = int(ready.get("observedGeneration", 0))
    not_ready = _dated(_condition("Ready", "False", error.reason, str(error)), before, generation, now)
    return {**previous, "conditions": [not_ready if c["type"] == "Ready" else c for c in previous["conditions"]]}


def undeletable_status(previous: Mapping[str, Any], error: TidemillError, now: dt.datetime) -> dict[str, Any]:
    """Return the status with Ready false, because the resource's data cannot be deleted yet."""
    before = {condition["type"]: condition for condition in previous.get("conditions", ())}
    if "Ready" not in before:
        return dict(previous)
    generation = int(before["Ready"].get("observedGeneration", 0))
    not_ready = _condition("Ready", "False", error.reason, f"its data cannot be deleted yet: {error}")
    dated = _dated(not_ready, before, generation, now)
    return {**previous, "conditions": [dated if c["type"] == "Ready" else c for c in previous["conditions"]]}


def reported_components(previous: Mapping[str, Any] | None) -> tuple[Component, ...]:
    """Return the components that have a condition in the previous status."""
    kinds = {condition["type"] for condition in (previous or {}).get("conditions", ())}
    return tuple(part for part in Component if part not in _OPTIONAL or CONDITIONS[part] in kinds)


def _has_condition(component: Component, report: Report) -> bool:
    return component not in _OPTIONAL or any(outcome.component == component for outcome in report.outcomes)


def _component_condition(component: Component, report: Report, before: Mapping[str, Condition]) -> Condition:
    kind, outcome = CONDITIONS[component], combine(report.outcomes, component)
    previous = before.get(kind)
    was_ready = previous is not None and previous["status"] == "True"
    error = report.progress_error
    if error is not None and _COMPONENT_OF_REASON.get(error.reason) == component:
        return _condition(kind, "False", error.reason, str(error))
    # The observer checks whether events are counted, but does not check connectors.
    watched = report.has_observer and not report.progress_error and component != Component.CONNECTORS
    match outcome.rank:
        case Rank.WAITING if outcome.serving:
            return _condition(kind, "True", outcome.reason, outcome.message)
        case Rank.FAILED if outcome.reason == Reason.UNREACHABLE and was_ready and watched:
            # A component may work although the operator cannot reach a server, such as Kafka. The observer reports
            # pipelines that stop counting events.
            return _condition(kind, "True", outcome.reason, outcome.message)
        case Rank.DONE:
            return _condition(kind, "True", outcome.reason, outcome.message)
        case Rank.WAITING | Rank.FAILED:
            return _condition(kind, "False", outcome.reason, outcome.message)
    if outcome.reason == Reason.BLOCKED:
        if previous is not None and was_ready:
            return _condition(kind, "True", previous["reason"], previous.get("message", ""))
        return _condition(kind, "Unknown", outcome.reason, outcome.message)
    return _condition(kind, "True", outcome.reason, outcome.message)


def _ready_condition(parts: Sequence[Condition], report: Report) -> Condition:
    if not report.accepted:
        return _condition("Ready", "False", report.stalled[0].reason, _join_errors(report.stalled))
    not_ready = [part for part in parts if part["status"] != "True"]
    if not_ready:
        return _condition("Ready", "False", *_summarize(not_ready))
    if report.progress_error:
        return _condition("Ready", "False", report.progress_error.reason, str(report.progress_error))
    if report.suspended:
        return _condition("Ready", "True", Reason.SUSPENDED, "suspended: no processors run")
    return _condition("Ready", "True", Reason.APPLIED, "")


def _progressing_condition(abnormal: Sequence[Condition]) -> Condition:
    """Return the condition Progressing, which is true while a change is under way."""
    by_kind = {condition["type"]: condition for condition in abnormal}
    for kind, state in (("Reconciling", "True"), ("Stalled", "False")):
        if kind in by_kind:
            return _condition(PROGRESSING, state, by_kind[kind]["reason"], by_kind[kind]["message"])
    return _condition(PROGRESSING, "False", Reason.APPLIED, "")


def _abnormal_conditions(
    parts: Sequence[Condition], report: Report, before: Mapping[str, Condition]
) -> list[Condition]:
    conditions = []
    unsettled = [part for part in parts if part["status"] != "True" or part["reason"] not in _SETTLED]
    stuck = [part for part in unsettled if part["reason"] in _USER_ACTION_REASONS]
    if report.stalled:
        text = _join_errors(report.stalled)
        if report.accepted:
            text += "; the accepted spec stays in force"
        # A new pipeline that only waits for its source topic is Reconciling, not Stalled.
        waits = not report.accepted and all(error.reason == Reason.WAITING for error in report.stalled)
        conditions.append(_condition("Reconciling" if waits else "Stalled", "True", report.stalled[0].reason, text))
    elif stuck:
        text = "; ".join(part.get("message", "") for part in stuck)
        conditions.append(_condition("Stalled", "True", stuck[0]["reason"], text))
    elif not report.spec_checked and "Stalled" in before and not _is_stalled_by_components(before):
        conditions.append(before["Stalled"])
    # A component that waits for a stalled component is not reconciling.
    waiting = [part for part in unsettled if part not in stuck and not (stuck and part["reason"] == Reason.BLOCKED)]
    if report.accepted and waiting:
        conditions.append(_condition("Reconciling", "True", *_summarize(waiting)))
    if report.suspended:
        conditions.append(_condition("Suspended", "True", Reason.SUSPENDED, "spec.suspend is true"))
    elif not report.spec_checked and "Suspended" in before:
        conditions.append(before["Suspended"])
    return conditions


def _is_stalled_by_components(before: Mapping[str, Condition]) -> bool:
    """Return whether the previous `Stalled` condition was caused by components, not by the spec."""
    conditions = [before[kind] for kind in CONDITIONS.values() if kind in before]
    stuck = [part.get("message", "") for part in conditions if part["reason"] in _USER_ACTION_REASONS]
    by_components = _condition("Stalled", "True", before["Stalled"]["reason"], "; ".join(stuck))
    return bool(stuck) and by_components.get("message") == before["Stalled"].get("message")


def _error_condition(
    kind: str, errors: Sequence[TidemillError] | None, before: Mapping[str, Condition]
) -> list[Condition]:
    """Return the condition `kind` if there are errors. If `errors` is None, keep the previous condition."""
    if errors is None:
        return [before[kind]] if kind in before else []
    if not errors:
        return []
    return [_condition(kind, "True", errors[0].reason, _join_errors(errors))]


def _summarize(parts: Sequence[Condition]) -> tuple[str, str]:
    """Combine conditions: return the most serious reason, and all messages as one text."""
    worst = next((part for part in parts if part["reason"] not in (Reason.WAITING, Reason.BLOCKED)), None)
    worst = worst or next((part for part in parts if part["reason"] == Reason.WAITING), parts[0])
    return worst["reason"], "; ".join(f"{part['type']}: {part.get('message') or part['reason']}" for part in parts)


def _join_errors(errors: Sequence[TidemillError]) -> str:
    return "; ".join(str(error) for error in errors)


def _condition(kind: str, state: str, reason: str, message: str) -> Condition:
    text = message if len(message) <= _MAX_MESSAGE else message[: _MAX_MESSAGE - 1] + "…"
    return {"type": kind, "status": state, "reason": str(reason), "message": text}


def _dated(condition: Condition, before: Mapping[str, Condition], generation: int, now: dt.datetime) -> Condition:
    previous = before.get(condition["type"])
    same = previous is not None and previous["status"] == condition["status"]
    moment = (
        previous["lastTransitionTime"]
        if previous is not None and same
        else now.astimezone(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    )
    return {**condition, "observedGeneration": generation, "lastTransitionTime": moment}
