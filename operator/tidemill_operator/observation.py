"""Observe a resource without changing it. This happens if the resource is paused, or a server does not answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tidemill_contract import names
from tidemill_contract.resource.rules import TopicLimits
from tidemill_contract.resource.spec import AnalyticsPipeline
from tidemill_contract.resource.validate import check_document
from tidemill_operator import kafka_topics
from tidemill_operator.actuators.base import Actuators
from tidemill_operator.actuators.connect.step import require_connect
from tidemill_operator.errors import Reason, TidemillError
from tidemill_operator.outcome import COMPONENT_OF_WORKLOAD, Component, Outcome, done, failed, skipped, waiting
from tidemill_operator.plan.build import build_plan, owner_of
from tidemill_operator.plan.live import LiveFacts, LiveSchema, LiveTopic
from tidemill_operator.plan.model import Plan, Topic
from tidemill_operator.plan.postgres.damage import damage_error
from tidemill_operator.plan.refusals import deleted_topic_error, missing_topic_error, ownership_errors
from tidemill_operator.plan.replay import REPLAY
from tidemill_operator.settings import Platform

WORKLOAD_COMPONENTS = (Component.PROCESSORS, Component.INGEST, Component.API)
# An accepted spec remains valid even if the platform no longer allows its topic.
_ANY_TOPIC = TopicLimits(topic_prefixes=("",))


@dataclass(frozen=True)
class ObservedPipeline:
    """The result of an observation."""

    pipeline: AnalyticsPipeline
    plan: Plan
    live: LiveFacts
    outcomes: list[Outcome]


def schema_name(document: Mapping[str, Any]) -> str | None:
    """Return the name of a pipeline's schema, or None if the resource has no valid name."""
    metadata = document.get("metadata", {})
    try:
        return names.schema(metadata.get("namespace", "default"), metadata["name"])
    except (KeyError, TypeError, AttributeError):
        return None


def accepted_pipeline(document: Mapping[str, Any], live: LiveSchema | None) -> AnalyticsPipeline | None:
    """Return the resource with the last accepted spec. This spec is stored in the pipeline's schema.

    Return None if no spec is stored, or the schema has another owner.
    """
    if live is None or live.accepted is None or live.owner is None:
        return None
    metadata = {key: document["metadata"][key] for key in ("name", "namespace", "uid") if document["metadata"].get(key)}
    if replay_request := (document["metadata"].get("annotations") or {}).get(REPLAY):
        # Keep the annotation, so that a running replay continues even if the new spec is refused.
        metadata["annotations"] = {REPLAY: replay_request}
    if live.owner.uid != (metadata.get("uid") or ""):
        return None
    type_meta = {key: document.get(key) for key in ("apiVersion", "kind")}
    pipeline, _ = check_document({**type_meta, "metadata": metadata, "spec": dict(live.accepted)}, _ANY_TOPIC)
    return pipeline


def observe_pipeline(document: Mapping[str, Any], platform: Platform, actuators: Actuators) -> ObservedPipeline | None:
    """Return the observed state of a resource, or None if the resource apparently never ran."""
    outcomes: list[Outcome] = []
    name = schema_name(document)
    if name is None:
        return None
    schema: LiveSchema | None = None
    with _collect_errors(outcomes, Component.SCHEMA):
        schema = actuators.postgres.observe(name)
    pipeline = accepted_pipeline(document, schema)
    if pipeline is None and outcomes:
        # The accepted spec is unknown, so observe the objects that the current spec names.
        pipeline, _ = check_document({**document, "status": None}, _ANY_TOPIC)
    if pipeline is None:
        return None
    live = LiveFacts(schema=schema)
    with _collect_errors(outcomes, Component.TOPICS):
        planned = build_plan(pipeline, platform, 1, live)
        own = [topic.name for topic in planned.topics if topic.kafka is None]
        live = LiveFacts(kafka_topics.observe(planned, own, actuators), actuators.kafka.broker_count(), schema)
    plan = build_plan(pipeline, platform, schema.generation if schema else 1, live, switch=False)
    if live.brokers is not None:
        outcomes += [_topic_outcome(topic, live.topics.get(topic.name)) for topic in plan.topics]
    if schema is not None:
        errors = list(ownership_errors(name, schema.owner, owner_of(pipeline, platform)))
        errors += [damage_error(plan.schema)] if plan.schema.lost else []
        outcomes += [failed(Component.SCHEMA, name, error) for error in errors] or [done(Component.SCHEMA, name)]
    outcomes += workload_outcomes(
        plan, actuators, lambda component: waiting(component, component.value, "it does not run")
    )
    with _collect_errors(outcomes, Component.CONNECTORS):
        outcomes += require_connect(actuators).observe(plan.connectors) if plan.connectors else []
    return ObservedPipeline(pipeline, plan, live, outcomes)


def workload_outcomes(plan: Plan, actuators: Actuators, absent: Callable[[Component], Outcome]) -> list[Outcome]:
    """Return the outcomes of a plan's workloads. A component that does not run gets `absent(component)`."""
    outcomes: list[Outcome] = []
    with _collect_errors(outcomes, *WORKLOAD_COMPONENTS):
        outcomes += actuators.runtime.observe(plan.workloads)
        planned = {COMPONENT_OF_WORKLOAD[workload.component] for workload in plan.workloads}
        running = {outcome.component for outcome in outcomes}
        outcomes += [absent(component) for component in WORKLOAD_COMPONENTS if component in planned - running]
    return outcomes


def blocked(component: Component, by: str) -> Outcome:
    """Return an outcome with the reason Blocked for a component that was not checked."""
    return skipped(component, component.value, Reason.BLOCKED, f"waits for {by}")


@contextmanager
def _collect_errors(outcomes: list[Outcome], *components: Component) -> Iterator[None]:
    try:
        yield
    except TidemillError as error:
        outcomes += [failed(component, component.value, error) for component in components]


def _topic_outcome(topic: Topic, live: LiveTopic | None) -> Outcome:
    if live is not None:
        facts = {"id": live.id, "partitions": live.partitions, "replicationFactor": live.replication_factor}
        return done(Component.TOPICS, topic.name, observed=facts)
    if not topic.managed:
        return failed(Component.TOPICS, topic.name, missing_topic_error(topic))
    if topic.lost:
        return failed(Component.TOPICS, topic.name, deleted_topic_error(topic))
    return waiting(Component.TOPICS, topic.name, f"topic {topic.name} does not exist")
