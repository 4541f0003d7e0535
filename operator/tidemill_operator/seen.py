"""Observe a resource without changing it. This happens if the resource is paused, or a server does not answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tidemill_contract import names
from tidemill_contract.resource.rules import Limits
from tidemill_contract.resource.spec import AnalyticsPipeline
from tidemill_contract.resource.validate import check
from tidemill_operator import elsewhere
from tidemill_operator.actuators.base import Actuators
from tidemill_operator.actuators.connect.step import connected
from tidemill_operator.errors import Reason, TidemillError
from tidemill_operator.outcome import OF_WORKLOAD, Component, Outcome, done, failed, skipped, waiting
from tidemill_operator.plan.build import build_plan, owner_of
from tidemill_operator.plan.live import LiveFacts, LiveSchema, LiveTopic
from tidemill_operator.plan.model import Plan, Topic
from tidemill_operator.plan.postgres.damage import damaged
from tidemill_operator.plan.refusals import foreign, gone, missing
from tidemill_operator.plan.replay import REPLAY
from tidemill_operator.settings import Platform

RUNNING = (Component.PROCESSORS, Component.INGEST, Component.API)
# An accepted spec remains valid even if the platform no longer allows its topic.
_ANY_TOPIC = Limits(topic_prefixes=("",))


@dataclass(frozen=True)
class Seen:
    """The result of an observation."""

    pipeline: AnalyticsPipeline
    plan: Plan
    live: LiveFacts
    outcomes: list[Outcome]


def accepted(document: Mapping[str, Any], live: LiveSchema | None) -> AnalyticsPipeline | None:
    """Return the resource with the last accepted spec. This spec is stored in the pipeline's schema.

    Return None if no spec is stored, or the schema has another owner.
    """
    if live is None or live.accepted is None or live.owner is None:
        return None
    metadata = {key: document["metadata"][key] for key in ("name", "namespace", "uid") if document["metadata"].get(key)}
    if replayed := (document["metadata"].get("annotations") or {}).get(REPLAY):
        # Keep the annotation, so that a running replay continues even if the new spec is refused.
        metadata["annotations"] = {REPLAY: replayed}
    if live.owner.uid != (metadata.get("uid") or ""):
        return None
    type_meta = {key: document.get(key) for key in ("apiVersion", "kind")}
    pipeline, _ = check({**type_meta, "metadata": metadata, "spec": dict(live.accepted)}, _ANY_TOPIC)
    return pipeline


def look(document: Mapping[str, Any], platform: Platform, actuators: Actuators) -> Seen | None:
    """Return the observed state of a resource, or None if the resource apparently never ran."""
    outcomes: list[Outcome] = []
    metadata = document.get("metadata", {})
    try:
        name = names.schema(metadata.get("namespace", "default"), metadata["name"])
    except (KeyError, TypeError, AttributeError):
        return None
    schema: LiveSchema | None = None
    with _told(outcomes, Component.SCHEMA):
        schema = actuators.postgres.observe(name)
    pipeline = accepted(document, schema)
    if pipeline is None and outcomes:
        # The accepted spec is unknown, so observe the objects that the current spec names.
        pipeline, _ = check({**document, "status": None}, _ANY_TOPIC)
    if pipeline is None:
        return None
    live = LiveFacts(schema=schema)
    with _told(outcomes, Component.TOPICS):
        planned = build_plan(pipeline, platform, 1, live)
        own = [topic.name for topic in planned.topics if topic.kafka is None]
        live = LiveFacts(elsewhere.observe(planned, own, actuators), actuators.kafka.brokers(), schema)
    plan = build_plan(pipeline, platform, schema.generation if schema else 1, live, switch=False)
    if live.brokers is not None:
        outcomes += [_topic(topic, live.topics.get(topic.name)) for topic in plan.topics]
    if schema is not None:
        errors = list(foreign(name, schema.owner, owner_of(pipeline, platform)))
        errors += [damaged(plan.schema)] if plan.schema.lost else []
        outcomes += [failed(Component.SCHEMA, name, error) for error in errors] or [done(Component.SCHEMA, name)]
    outcomes += running(plan, actuators, lambda component: waiting(component, component.value, "it does not run"))
    with _told(outcomes, Component.CONNECTORS):
        outcomes += connected(actuators).observe(plan.connectors) if plan.connectors else []
    return Seen(pipeline, plan, live, outcomes)


def running(plan: Plan, actuators: Actuators, absent: Callable[[Component], Outcome]) -> list[Outcome]:
    """Return the outcomes of a plan's workloads. A component that does not run gets `absent(component)`."""
    outcomes: list[Outcome] = []
    with _told(outcomes, *RUNNING):
        outcomes += actuators.runtime.observe(plan.workloads)
        asked = {OF_WORKLOAD[workload.component] for workload in plan.workloads}
        there = {outcome.component for outcome in outcomes}
        outcomes += [absent(component) for component in RUNNING if component in asked - there]
    return outcomes


def blocked(component: Component, by: str) -> Outcome:
    """Return an outcome with the reason Blocked for a component that was not checked."""
    return skipped(component, component.value, Reason.BLOCKED, f"waits for {by}")


@contextmanager
def _told(outcomes: list[Outcome], *components: Component) -> Iterator[None]:
    try:
        yield
    except TidemillError as error:
        outcomes += [failed(component, component.value, error) for component in components]


def _topic(topic: Topic, live: LiveTopic | None) -> Outcome:
    if live is not None:
        facts = {"id": live.id, "partitions": live.partitions, "replicationFactor": live.replication_factor}
        return done(Component.TOPICS, topic.name, observed=facts)
    if not topic.managed:
        return failed(Component.TOPICS, topic.name, missing(topic))
    if topic.lost:
        return failed(Component.TOPICS, topic.name, gone(topic))
    return waiting(Component.TOPICS, topic.name, f"topic {topic.name} does not exist")
