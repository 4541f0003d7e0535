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
from tidemill_contract.resource.validate import check
from tidemill_operator import elsewhere
from tidemill_operator.actuators.base import Actuators
from tidemill_operator.actuators.connect.step import ConnectorStep
from tidemill_operator.errors import NotOurTurn, Reason, TidemillError
from tidemill_operator.outcome import Component, Outcome, Rank, failed, skipped
from tidemill_operator.plan.build import build_plan, owner_of, resolve
from tidemill_operator.plan.kafka.claims import only_made, written_by_pipelines
from tidemill_operator.plan.kafka.replication import Spread
from tidemill_operator.plan.kafka.topics import desired_topics
from tidemill_operator.plan.live import LiveFacts, Owner
from tidemill_operator.plan.model import Plan
from tidemill_operator.plan.refusals import refusals
from tidemill_operator.reporting import reported
from tidemill_operator.rotation import ROTATE, Logins
from tidemill_operator.seen import RUNNING, accepted, blocked, look, running
from tidemill_operator.settings import Platform
from tidemill_operator.status import Report, concerned, status

log = logging.getLogger(__name__)
Scaled = Callable[[AnalyticsPipeline], Mapping[ScaledComponent, int]]
ADOPT, PAUSE, REBALANCE = "tidemill.dev/adopt", "tidemill.dev/paused", "tidemill.dev/rebalance-at"
_MAX_FAULTS = 8


@dataclass(frozen=True)
class _Choice:
    """The pipeline and plan to run, and the errors that keep a newer spec from running."""

    pipeline: AnalyticsPipeline | None
    plan: Plan | None
    stalled: Sequence[TidemillError] = ()


class _UnseenError(Exception):
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
        except NotOurTurn:
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
        self.outcomes += [blocked(part, by) for part in components]


def reconcile(
    document: Mapping[str, Any],
    *,
    platform: Platform,
    actuators: Actuators,
    previous: Mapping[str, Any] | None,
    now: dt.datetime,
    scaled: Scaled | None = None,
    standing: Callable[[], TidemillError | None] | None = None,
) -> dict[str, Any]:
    """Create, change and remove objects to match a resource, as far as possible in one pass.

    Args:
        document: the resource, with metadata.generation and uid.
        platform: addresses and defaults.
        actuators: the actuators of the platform.
        previous: the status that the last pass returned.
        now: the current time, as an aware datetime.
        scaled: function that returns the number of replicas that scaling has chosen, by component.
        standing: function that returns an error if the pipeline has stopped counting events. `standing` is None if
            there is no observer.

    Returns:
        The new status, which also reports errors of servers and of the spec.

    Raises:
        NotOurTurn: another operator is working on this pipeline, or has taken it over.
    """
    metadata = document.get("metadata", {})
    generation = int(metadata.get("generation", 1))

    def told(report: Report) -> dict[str, Any]:
        watched = standing is not None
        return status(previous, replace(report, watched=watched, standing=standing() if standing else None), now)

    if (metadata.get("annotations") or {}).get(PAUSE) == "true":
        return told(_paused(document, generation, platform, actuators))
    try:
        with _turn(document, actuators) as confirm:
            live, choice = _choose(document, platform, actuators, scaled)
            if choice.plan is None or choice.pipeline is None:
                doing = _Pass()
                doing.block(*concerned(previous), by="a spec that can be applied")
                return told(Report(generation, doing.outcomes, choice.stalled, accepted=False))
            logins = _logins(choice.pipeline, choice.plan, metadata, platform, actuators, now=now, confirm=confirm)
            spread = _asked(metadata, previous)
            connectors = ConnectorStep(actuators, choice.plan, logins.owner, logins.adopt, concerned(previous))
            outcomes = _ensure(choice.plan, live, actuators, logins, connectors, confirm=confirm, spread=spread)
            confirm()  # raise NotOurTurn instead of writing a status if another operator has the lock
            report = reported(choice.pipeline, choice.plan, live, outcomes, platform, actuators)
            return told(
                replace(
                    report,
                    generation=generation,
                    stalled=choice.stalled,
                    credentials=logins.status(),
                    rebalanced=_rebalanced(metadata, outcomes),
                )
            )
    except _UnseenError as unseen:
        outcomes = _beside(unseen, document, platform, actuators, concerned(previous))
        return told(Report(generation, outcomes, judged=False))


def _logins(
    pipeline: AnalyticsPipeline,
    plan: Plan,
    metadata: Mapping[str, Any],
    platform: Platform,
    actuators: Actuators,
    *,
    now: dt.datetime,
    confirm: Callable[[], None],
) -> Logins:
    annotations = metadata.get("annotations") or {}
    return Logins(
        actuators,
        plan,
        owner_of(pipeline, platform),
        rotate=str(annotations.get(ROTATE) or ""),
        adopt=annotations.get(ADOPT) == "true",
        now=now,
        confirm=confirm,
    )


def _paused(document: Mapping[str, Any], generation: int, platform: Platform, actuators: Actuators) -> Report:
    seen = look(document, platform, actuators)
    if seen is None:
        return Report(generation, paused=True, judged=False)
    report = reported(seen.pipeline, seen.plan, seen.live, seen.outcomes, platform, actuators)
    return replace(report, generation=generation, paused=True, judged=False)


def _beside(
    unseen: _UnseenError,
    document: Mapping[str, Any],
    platform: Platform,
    actuators: Actuators,
    components: Sequence[Component],
) -> list[Outcome]:
    """Return the outcomes of all components after a server did not answer."""
    by = unseen.component.value
    outcomes = [failed(unseen.component, by, unseen.error)]
    pipeline, _ = check({**document, "status": None}, platform.limits)
    if pipeline is not None and unseen.component not in RUNNING:
        outcomes += running(build_plan(pipeline, platform, 1), actuators, lambda component: blocked(component, by))
    there = {outcome.component for outcome in outcomes}
    return [*outcomes, *(blocked(component, by) for component in components if component not in there)]


def release(document: Mapping[str, Any], *, platform: Platform, actuators: Actuators) -> list[Outcome]:
    """Release a deleted resource: end its workloads, then keep or delete topics and schema.

    Raises:
        TidemillError: a server does not answer or is busy, so the caller must retry later.
    """
    metadata = document["metadata"]
    namespace, name = metadata.get("namespace", "default"), metadata["name"]
    actuators.runtime.remove(namespace, name)
    with actuators.postgres.exclusive(names.schema(namespace, name)) as confirm:
        return _release(document, platform, actuators, confirm)


def _release(
    document: Mapping[str, Any], platform: Platform, actuators: Actuators, confirm: Callable[[], None]
) -> list[Outcome]:
    metadata = document["metadata"]
    namespace, name = metadata.get("namespace", "default"), metadata["name"]
    pipeline, _ = check({**document, "status": None}, platform.limits)
    live = actuators.postgres.observe(names.schema(namespace, name))
    ran = accepted(document, live) or pipeline
    outcomes = _disconnect(document, (pipeline, ran), platform, actuators)
    # Topics are created after the schema, so a pipeline without a schema has no topics.
    if ran is None or live is None or live.owner != owner_of(ran, platform):
        message = "the schema has another owner"
        return [*outcomes, skipped(Component.SCHEMA, names.schema(namespace, name), message=message)]
    facts = LiveFacts(schema=live)
    plan = build_plan(ran, platform, live.generation, facts)
    policy = (pipeline or ran).spec.reclaim_policy
    # An earlier spec may have enabled more output topics than this spec.
    topics = desired_topics(resolve(ran, platform, live.generation, facts), platform, facts, all_kinds=True)
    topics = tuple(only_made(topics, live, namespace=namespace, name=name))
    confirm()
    outcomes += actuators.kafka.release(topics, policy)
    confirm()
    outcomes += actuators.postgres.release(plan.schema, owner=owner_of(ran, platform), reclaim=policy)
    busy = [outcome for outcome in outcomes if outcome.rank == Rank.WAITING]
    if busy:
        raise TidemillError(Reason.WAITING, busy[0].message)
    if policy == "Delete":
        actuators.secrets.remove(namespace, name)
    return outcomes


def _disconnect(
    document: Mapping[str, Any],
    specs: Sequence[AnalyticsPipeline | None],
    platform: Platform,
    actuators: Actuators,
) -> list[Outcome]:
    has = any(pipeline is not None and pipeline.spec.source.connectors for pipeline in specs)
    if actuators.connect is None or not (has or Component.CONNECTORS in concerned(document.get("status"))):
        return []
    metadata = document["metadata"]
    place = metadata.get("namespace", "default"), metadata["name"], metadata.get("uid") or ""
    return actuators.connect.remove(owner=Owner(*place, platform.cluster_id))


@contextmanager
def _turn(document: Mapping[str, Any], actuators: Actuators) -> Iterator[Callable[[], None]]:
    """Lock the pipeline, and yield a function. The function raises NotOurTurn if the lock is lost."""
    metadata = document.get("metadata", {})
    try:
        schema = names.schema(metadata.get("namespace", "default"), metadata["name"])
    except (KeyError, TypeError, AttributeError):
        yield lambda: None  # without a valid name, there is no schema to lock
        return
    with ExitStack() as held:
        with _looking_at(Component.SCHEMA):
            confirm = held.enter_context(actuators.postgres.exclusive(schema))

        def asked() -> None:
            with _looking_at(Component.SCHEMA):
                confirm()

        yield asked


def _choose(
    document: Mapping[str, Any], platform: Platform, actuators: Actuators, scaled: Scaled | None
) -> tuple[LiveFacts, _Choice]:
    """Choose the newest spec if it can be applied, else the last accepted spec."""
    pipeline, faults = check({**document, "status": None}, platform.limits)
    live, stalled = LiveFacts(), [TidemillError(Reason.INVALID_SPEC, str(fault)) for fault in faults[:_MAX_FAULTS]]
    if pipeline is not None:
        live = _look(pipeline, platform, actuators, scaled)
        plan = build_plan(pipeline, platform, pipeline.metadata.generation, live)
        stalled = refusals(pipeline, plan, live)
        if not stalled:
            return live, _Choice(pipeline, plan)
    metadata = document.get("metadata", {})
    try:
        schema = names.schema(metadata.get("namespace", "default"), metadata["name"])
    except (KeyError, TypeError, AttributeError):
        return live, _Choice(None, None, stalled)
    with _looking_at(Component.SCHEMA):
        live_schema = live.schema if pipeline else actuators.postgres.observe(schema)
    earlier = accepted(document, live_schema)
    if earlier is None:
        return live, _Choice(None, None, stalled)
    live = _look(earlier, platform, actuators, scaled)
    generation = live.schema.generation if live.schema else 1
    plan = build_plan(earlier, platform, generation, live)
    if any(
        written_by_pipelines(plan.namespace, plan.name, plan.schema.own_sources)
    ):  # an earlier Tidemill version accepted output topics of pipelines as sources
        return live, _Choice(None, None, stalled)
    return live, _Choice(earlier, plan, stalled)


def _look(pipeline: AnalyticsPipeline, platform: Platform, actuators: Actuators, scaled: Scaled | None) -> LiveFacts:
    with _looking_at(Component.SCHEMA):
        schema = actuators.postgres.observe(names.schema(pipeline.metadata.namespace, pipeline.metadata.name))
    with _looking_at(Component.TOPICS):
        topic_names = elsewhere.found(pipeline, platform, actuators.kafka, actuators.clusters)
        plan = elsewhere.first_plan(pipeline, platform, topic_names, schema)
        live = elsewhere.facts(plan, topic_names, schema, actuators)
    with _looking_at(Component.PROCESSORS):
        return replace(live, replicas=scaled(pipeline) if scaled else {})


@contextmanager
def _looking_at(component: Component) -> Iterator[None]:
    try:
        yield
    except NotOurTurn:
        raise
    except TidemillError as error:
        raise _UnseenError(component, error) from error


def _ensure(
    plan: Plan,
    live: LiveFacts,
    actuators: Actuators,
    logins: Logins,
    connectors: ConnectorStep,
    *,
    confirm: Callable[[], None],
    spread: Spread | None,
) -> list[Outcome]:
    doing = _Pass()
    if not doing.step(Component.SCHEMA, act=logins.ensure):
        doing.block(Component.TOPICS, *RUNNING, *connectors.components, by="the schema")
        return doing.outcomes
    confirm()
    there = doing.step(Component.TOPICS, act=lambda: elsewhere.ensure(plan, actuators, spread=spread))
    if not there and not _readable(plan, live):
        doing.block(*RUNNING, *connectors.components, by="the topics")
        return doing.outcomes
    confirm()
    doing.step(*RUNNING, act=lambda: actuators.runtime.ensure(plan.workloads))
    confirm()
    ran = [outcome for outcome in doing.outcomes if outcome.component in RUNNING]
    doing.step(Component.SCHEMA, act=lambda: logins.retire(ran))
    confirm()
    doing.step(*connectors.components, act=connectors.ensure)
    _expire(plan, actuators)
    return doing.outcomes


def _readable(plan: Plan, live: LiveFacts) -> bool:
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


def _asked(metadata: Mapping[str, Any], previous: Mapping[str, Any] | None) -> Spread | None:
    """Return the request to spread the topics' replicas over the brokers, unless it was handled before."""
    text = _request(metadata)
    return Spread.asked(text) if text and text != (previous or {}).get("rebalancedAt") else None


def _request(metadata: Mapping[str, Any]) -> str:
    return str((metadata.get("annotations") or {}).get(REBALANCE) or "")[-256:]


def _rebalanced(metadata: Mapping[str, Any], outcomes: Sequence[Outcome]) -> str:
    topics = [outcome for outcome in outcomes if outcome.component == Component.TOPICS]
    done = topics and all(outcome.rank == Rank.DONE for outcome in topics)
    return _request(metadata) if done else ""
