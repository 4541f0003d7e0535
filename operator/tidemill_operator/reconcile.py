"""One reconcile pass: validate, observe, plan, make the changes, and return the new status.

A pass changes secrets first, then the schema, the topics and the workloads.
"""

from __future__ import annotations

import datetime as dt
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from tidemill_contract import names
from tidemill_contract.resource.faults import one_line
from tidemill_contract.resource.spec import AnalyticsPipeline, ScaledComponent
from tidemill_contract.resource.validate import check_document
from tidemill_operator import kafka_topics
from tidemill_operator.actuators.base import Actuators
from tidemill_operator.actuators.connect.step import ConnectorStep
from tidemill_operator.errors import LockNotHeldError, Reason, TidemillError
from tidemill_operator.observation import (
    WORKLOAD_COMPONENTS,
    accepted_pipeline,
    blocked,
    observe_pipeline,
    schema_name,
    workload_outcomes,
)
from tidemill_operator.outcome import Component, Outcome, Rank, failed, skipped
from tidemill_operator.plan.build import build_plan, owner_of, resolve_config
from tidemill_operator.plan.kafka.claims import reserved_topic_errors, topics_to_release
from tidemill_operator.plan.kafka.replication import Spread
from tidemill_operator.plan.kafka.topics import desired_topics
from tidemill_operator.plan.live import LiveFacts, Owner
from tidemill_operator.plan.model import Plan
from tidemill_operator.plan.refusals import refusals
from tidemill_operator.reporting import build_report
from tidemill_operator.rotation import ROTATE, LoginRotation
from tidemill_operator.settings import Platform
from tidemill_operator.status import Report, new_status, reported_components

log = logging.getLogger(__name__)
ScaledReplicas = Callable[[AnalyticsPipeline], Mapping[ScaledComponent, int]]
ADOPT, PAUSE, REBALANCE = "tidemill.dev/adopt", "tidemill.dev/paused", "tidemill.dev/rebalance-at"
_MAX_FAULTS = 8


@dataclass(frozen=True)
class _ChosenSpec:
    """The pipeline and plan to run, and the errors that keep a newer spec from running."""

    pipeline: AnalyticsPipeline | None
    plan: Plan | None
    stalled: Sequence[TidemillError] = ()


class _ObservationError(Exception):
    """A server did not answer when the operator read the pipeline's state."""

    def __init__(self, component: Component, error: TidemillError) -> None:
        super().__init__(str(error))
        self.component, self.error = component, error


@dataclass
class _Pass:
    outcomes: list[Outcome] = field(default_factory=list)

    def step(self, *components: Component, act: Callable[[], list[Outcome]]) -> bool:
        """Run a step, and return whether the step is complete.

        If `act` raises an error, each of `components` gets a failed outcome.
        """
        try:
            outcomes = act()
        except LockNotHeldError:
            raise
        except TidemillError as error:
            outcomes = [failed(component, component.value, error) for component in components]
        except Exception as error:
            log.exception("%s failed", components[0].value)
            internal_error = TidemillError(
                Reason.INTERNAL, f"{type(error).__name__}: {one_line(str(error))}", "see the log"
            )
            outcomes = [failed(component, component.value, internal_error) for component in components]
        for outcome in outcomes:
            if outcome.changed and outcome.component == Component.SCHEMA:
                log.info("schema %s: %d statements or rows written", outcome.name, outcome.changed)
        self.outcomes += outcomes
        return all(outcome.rank <= Rank.DONE for outcome in outcomes)

    def block(self, *components: Component, by: str) -> None:
        self.outcomes += [blocked(component, by) for component in components]


def reconcile(
    document: Mapping[str, Any],
    *,
    platform: Platform,
    actuators: Actuators,
    previous: Mapping[str, Any] | None,
    now: dt.datetime,
    scaled_replicas: ScaledReplicas | None = None,
    progress_error: Callable[[], TidemillError | None] | None = None,
) -> dict[str, Any]:
    """Create, change and remove objects to match a resource, as far as possible in one pass.

    Args:
        document: the resource, with metadata.generation and uid.
        platform: addresses and defaults.
        actuators: the actuators of the platform.
        previous: the status that the last pass returned.
        now: the current time, as an aware datetime.
        scaled_replicas: function that returns the number of replicas that scaling has chosen, by component.
        progress_error: function that returns an error if the pipeline has stopped counting events, or None without an
            observer.

    Returns:
        The new status, which also reports errors of servers and of the spec.

    Raises:
        LockNotHeldError: another operator is working on this pipeline, or has taken it over.
    """
    metadata = document.get("metadata", {})
    generation = int(metadata.get("generation", 1))

    def make_status(report: Report) -> dict[str, Any]:
        error = progress_error() if progress_error else None
        report = replace(report, has_observer=progress_error is not None, progress_error=error)
        return new_status(previous, report, now)

    if (metadata.get("annotations") or {}).get(PAUSE) == "true":
        return make_status(_paused_report(document, generation, platform, actuators))
    try:
        with _lock_pipeline(document, actuators) as confirm:
            live, choice = _choose(document, platform, actuators, scaled_replicas)
            if choice.plan is None or choice.pipeline is None:
                steps = _Pass()
                steps.block(*reported_components(previous), by="a spec that can be applied")
                return make_status(Report(generation, steps.outcomes, choice.stalled, accepted=False))
            rotation = _rotation(choice.pipeline, choice.plan, metadata, platform, actuators, now=now, confirm=confirm)
            spread = _spread_request(metadata, previous)
            reported = reported_components(previous)
            connectors = ConnectorStep(actuators, choice.plan, rotation.owner, rotation.adopt, reported)
            outcomes = _ensure(choice.plan, live, actuators, rotation, connectors, confirm=confirm, spread=spread)
            confirm()  # raise LockNotHeldError instead of writing a status if another operator has the lock
            report = build_report(choice.pipeline, choice.plan, live, outcomes, platform, actuators)
            return make_status(
                replace(
                    report,
                    generation=generation,
                    stalled=choice.stalled,
                    credentials=rotation.status(),
                    rebalanced=_handled_rebalance(metadata, outcomes),
                )
            )
    except _ObservationError as failure:
        outcomes = _unobserved_outcomes(failure, document, platform, actuators, reported_components(previous))
        return make_status(Report(generation, outcomes, spec_checked=False))


def _rotation(
    pipeline: AnalyticsPipeline,
    plan: Plan,
    metadata: Mapping[str, Any],
    platform: Platform,
    actuators: Actuators,
    *,
    now: dt.datetime,
    confirm: Callable[[], None],
) -> LoginRotation:
    annotations = metadata.get("annotations") or {}
    return LoginRotation(
        actuators,
        plan,
        owner_of(pipeline, platform),
        rotate=str(annotations.get(ROTATE) or ""),
        adopt=annotations.get(ADOPT) == "true",
        now=now,
        confirm=confirm,
    )


def _paused_report(document: Mapping[str, Any], generation: int, platform: Platform, actuators: Actuators) -> Report:
    observed = observe_pipeline(document, platform, actuators)
    if observed is None:
        return Report(generation, paused=True, spec_checked=False)
    report = build_report(observed.pipeline, observed.plan, observed.live, observed.outcomes, platform, actuators)
    return replace(report, generation=generation, paused=True, spec_checked=False)


def _unobserved_outcomes(
    failure: _ObservationError,
    document: Mapping[str, Any],
    platform: Platform,
    actuators: Actuators,
    components: Sequence[Component],
) -> list[Outcome]:
    """Return the outcomes of all components after a server did not answer."""
    by = failure.component.value
    outcomes = [failed(failure.component, by, failure.error)]
    pipeline, _ = check_document({**document, "status": None}, platform.limits)
    if pipeline is not None and failure.component not in WORKLOAD_COMPONENTS:
        outcomes += workload_outcomes(
            build_plan(pipeline, platform, 1), actuators, lambda component: blocked(component, by)
        )
    reported = {outcome.component for outcome in outcomes}
    return [*outcomes, *(blocked(component, by) for component in components if component not in reported)]


def release(document: Mapping[str, Any], *, platform: Platform, actuators: Actuators) -> list[Outcome]:
    """Release a deleted resource: end its workloads, then keep or delete topics and schema.

    Raises:
        TidemillError: a server does not answer or is busy, so the caller must retry later.
    """
    metadata = document["metadata"]
    namespace, name = metadata.get("namespace", "default"), metadata["name"]
    actuators.runtime.remove(namespace, name)
    with actuators.postgres.lock(names.schema(namespace, name)) as confirm:
        return _release(document, platform, actuators, confirm)


def _release(
    document: Mapping[str, Any], platform: Platform, actuators: Actuators, confirm: Callable[[], None]
) -> list[Outcome]:
    metadata = document["metadata"]
    namespace, name = metadata.get("namespace", "default"), metadata["name"]
    pipeline, _ = check_document({**document, "status": None}, platform.limits)
    live_schema = actuators.postgres.observe(names.schema(namespace, name))
    accepted = accepted_pipeline(document, live_schema) or pipeline
    outcomes = _remove_connectors(document, (pipeline, accepted), platform, actuators)
    # Topics are created after the schema, so a pipeline without a schema has no topics.
    if accepted is None or live_schema is None or live_schema.owner != owner_of(accepted, platform):
        message = "the schema has another owner"
        return [*outcomes, skipped(Component.SCHEMA, names.schema(namespace, name), message=message)]
    live = LiveFacts(schema=live_schema)
    plan = build_plan(accepted, platform, live_schema.generation, live)
    policy = (pipeline or accepted).spec.reclaim_policy
    # An earlier spec may have enabled more output topics than this spec.
    topics = desired_topics(
        resolve_config(accepted, platform, live_schema.generation, live), platform, live, all_kinds=True
    )
    topics = tuple(topics_to_release(topics, live_schema, namespace=namespace, name=name))
    confirm()
    outcomes += actuators.kafka.release(topics, policy)
    confirm()
    outcomes += actuators.postgres.release(plan.schema, owner=owner_of(accepted, platform), reclaim=policy)
    busy = [outcome for outcome in outcomes if outcome.rank == Rank.WAITING]
    if busy:
        raise TidemillError(Reason.WAITING, busy[0].message)
    if policy == "Delete":
        actuators.secrets.remove(namespace, name)
    return outcomes


def _remove_connectors(
    document: Mapping[str, Any], pipelines: Sequence[AnalyticsPipeline | None], platform: Platform, actuators: Actuators
) -> list[Outcome]:
    in_specs = any(pipeline is not None and pipeline.spec.source.connectors for pipeline in pipelines)
    if actuators.connect is None or not (
        in_specs or Component.CONNECTORS in reported_components(document.get("status"))
    ):
        return []
    metadata = document["metadata"]
    key = metadata.get("namespace", "default"), metadata["name"], metadata.get("uid") or ""
    return actuators.connect.remove(owner=Owner(*key, platform.cluster_id))


@contextmanager
def _lock_pipeline(document: Mapping[str, Any], actuators: Actuators) -> Iterator[Callable[[], None]]:
    """Lock the pipeline, and yield a function. The function raises LockNotHeldError if the lock is lost."""
    schema = schema_name(document)
    if schema is None:
        yield lambda: None  # without a valid name, there is no schema to lock
        return
    with ExitStack() as stack:
        with _observing(Component.SCHEMA):
            confirm = stack.enter_context(actuators.postgres.lock(schema))

        def confirm_lock() -> None:
            with _observing(Component.SCHEMA):
                confirm()

        yield confirm_lock


def _choose(
    document: Mapping[str, Any], platform: Platform, actuators: Actuators, scaled: ScaledReplicas | None
) -> tuple[LiveFacts, _ChosenSpec]:
    """Choose the newest spec if it can be applied, else the last accepted spec."""
    pipeline, faults = check_document({**document, "status": None}, platform.limits)
    live, stalled = LiveFacts(), [TidemillError(Reason.INVALID_SPEC, str(fault)) for fault in faults[:_MAX_FAULTS]]
    if pipeline is not None:
        live = _observe(pipeline, platform, actuators, scaled)
        plan = build_plan(pipeline, platform, pipeline.metadata.generation, live)
        stalled = refusals(pipeline, plan, live)
        if not stalled:
            return live, _ChosenSpec(pipeline, plan)
    schema = schema_name(document)
    if schema is None:
        return live, _ChosenSpec(None, None, stalled)
    with _observing(Component.SCHEMA):
        live_schema = live.schema if pipeline else actuators.postgres.observe(schema)
    accepted = accepted_pipeline(document, live_schema)
    if accepted is None:
        return live, _ChosenSpec(None, None, stalled)
    live = _observe(accepted, platform, actuators, scaled)
    generation = live.schema.generation if live.schema else 1
    plan = build_plan(accepted, platform, generation, live)
    # An earlier Tidemill version accepted output topics of pipelines as sources.
    if any(reserved_topic_errors(plan.namespace, plan.name, plan.schema.own_sources)):
        return live, _ChosenSpec(None, None, stalled)
    return live, _ChosenSpec(accepted, plan, stalled)


def _observe(
    pipeline: AnalyticsPipeline, platform: Platform, actuators: Actuators, scaled: ScaledReplicas | None
) -> LiveFacts:
    with _observing(Component.SCHEMA):
        live_schema = actuators.postgres.observe(names.schema(pipeline.metadata.namespace, pipeline.metadata.name))
    with _observing(Component.TOPICS):
        topic_names = kafka_topics.pattern_candidates(pipeline, platform, actuators.kafka, actuators.clusters)
        plan = kafka_topics.preliminary_plan(pipeline, platform, topic_names, live_schema)
        live = kafka_topics.read_facts(plan, topic_names, live_schema, actuators)
    with _observing(Component.PROCESSORS):
        return replace(live, replicas=scaled(pipeline) if scaled else {})


@contextmanager
def _observing(component: Component) -> Iterator[None]:
    try:
        yield
    except LockNotHeldError:
        raise
    except TidemillError as error:
        raise _ObservationError(component, error) from error


def _ensure(
    plan: Plan,
    live: LiveFacts,
    actuators: Actuators,
    rotation: LoginRotation,
    connectors: ConnectorStep,
    *,
    confirm: Callable[[], None],
    spread: Spread | None,
) -> list[Outcome]:
    steps = _Pass()
    if not steps.step(Component.SCHEMA, act=rotation.ensure):
        steps.block(Component.TOPICS, *WORKLOAD_COMPONENTS, *connectors.components, by="the schema")
        return steps.outcomes
    confirm()
    topics_ready = steps.step(Component.TOPICS, act=lambda: kafka_topics.ensure(plan, actuators, spread=spread))
    if not topics_ready and not _topics_exist(plan, live):
        steps.block(*WORKLOAD_COMPONENTS, *connectors.components, by="the topics")
        return steps.outcomes
    confirm()
    steps.step(*WORKLOAD_COMPONENTS, act=lambda: actuators.runtime.ensure(plan.workloads))
    confirm()
    workloads = [outcome for outcome in steps.outcomes if outcome.component in WORKLOAD_COMPONENTS]
    steps.step(Component.SCHEMA, act=lambda: rotation.retire(workloads))
    confirm()
    steps.step(*connectors.components, act=connectors.ensure)
    _expire(plan, actuators)
    return steps.outcomes


def _topics_exist(plan: Plan, live: LiveFacts) -> bool:
    """Return whether the needed topics exist. In a list of source topics, one existing topic is enough."""
    listed = [topic.name in live.topics for topic in plan.topics if topic.listed]
    others = all(topic.name in live.topics for topic in plan.topics if not topic.listed)
    return others and (any(listed) or not listed)


def _expire(plan: Plan, actuators: Actuators) -> None:
    """Delete expired data, and log an error instead of raising it."""
    try:
        actuators.postgres.expire(plan.schema)
    except TidemillError as error:
        log.warning("%s", error)


def _spread_request(metadata: Mapping[str, Any], previous: Mapping[str, Any] | None) -> Spread | None:
    """Return the request to spread the topics' replicas over the brokers, unless it was handled before."""
    text = _rebalance_request(metadata)
    return Spread.parse(text) if text and text != (previous or {}).get("rebalancedAt") else None


def _rebalance_request(metadata: Mapping[str, Any]) -> str:
    return str((metadata.get("annotations") or {}).get(REBALANCE) or "")[-256:]


def _handled_rebalance(metadata: Mapping[str, Any], outcomes: Sequence[Outcome]) -> str:
    topics = [outcome for outcome in outcomes if outcome.component == Component.TOPICS]
    all_done = topics and all(outcome.rank == Rank.DONE for outcome in topics)
    return _rebalance_request(metadata) if all_done else ""
