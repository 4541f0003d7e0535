"""Read and change topics on the platform's Kafka, and read topics on the source's cluster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tidemill_contract import names
from tidemill_contract.resource.inputs.patterns import candidate_topics, other_cluster_candidates
from tidemill_contract.resource.spec import AnalyticsPipeline
from tidemill_operator.actuators.base import Actuators, OtherClusters, Topics
from tidemill_operator.errors import TidemillError
from tidemill_operator.outcome import Component, Outcome, done, failed
from tidemill_operator.plan.build import build_plan
from tidemill_operator.plan.kafka.replication import Spread
from tidemill_operator.plan.kafka.slots import topics_in_use
from tidemill_operator.plan.live import LiveFacts, LiveSchema, LiveTopic
from tidemill_operator.plan.model import Plan, Topic
from tidemill_operator.plan.refusals import missing_topic_error, topics_to_observe
from tidemill_operator.settings import Platform


def pattern_candidates(
    pipeline: AnalyticsPipeline, platform: Platform, kafka: Topics, clusters: OtherClusters
) -> tuple[str, ...]:
    """Return the names of existing topics that the pipeline's `topicPattern` is allowed to match.

    Without a pattern, the result is empty.

    Raises:
        TidemillError: a cluster does not answer, or cannot be read.
    """
    metadata, source = pipeline.metadata, pipeline.spec.source
    if source.topic_pattern is None:
        return ()
    if source.kafka is None:
        return tuple(candidate_topics(kafka.names(), namespace=metadata.namespace, limits=platform.limits))
    outputs = [names.topic(metadata.namespace, metadata.name, kind) for kind in names.OUTPUT_TOPICS]
    return tuple(other_cluster_candidates(clusters.names(metadata.namespace, source.kafka), outputs))


def preliminary_plan(
    pipeline: AnalyticsPipeline, platform: Platform, topic_names: tuple[str, ...], schema: LiveSchema | None
) -> Plan:
    """Return a preliminary plan, which names the topics to observe."""
    live = (
        LiveFacts(schema=schema, pattern_candidates=topic_names)
        if pipeline.spec.source.topic_pattern is not None
        else None
    )
    return build_plan(pipeline, platform, 1, live)


def observe(plan: Plan, own: Sequence[str], actuators: Actuators) -> dict[str, LiveTopic]:
    """Return the topics that exist, by name.

    Args:
        plan: the plan, which names the topics to look up on other Kafka clusters.
        own: the names of topics to look up on the platform's Kafka.
        actuators: the actuators of the platform.

    Raises:
        TidemillError: a cluster does not answer, or cannot be read.
    """
    topics = dict(actuators.kafka.observe(own))
    for topic in plan.topics:
        if topic.kafka is not None and (live := actuators.clusters.topic(plan.namespace, topic.kafka, topic.name)):
            topics[topic.name] = live
    return topics


def read_facts(plan: Plan, topic_names: tuple[str, ...], schema: LiveSchema | None, actuators: Actuators) -> LiveFacts:
    """Return the state of topics, brokers and schema, on which the final plan depends.

    Args:
        plan: the plan that `preliminary_plan` returned.
        topic_names: the existing topics that the pipeline's `topicPattern` is allowed to match.
        schema: the state of the schema in Postgres, or None if it does not exist.
        actuators: the actuators of the platform.

    Raises:
        TidemillError: a cluster does not answer, or cannot be read.
    """
    topics = observe(plan, topics_to_observe(plan, schema), actuators)
    confirmed = _confirmed_missing(plan, topics, schema, actuators)
    return LiveFacts(
        topics, actuators.kafka.broker_count(), schema, pattern_candidates=topic_names, confirmed_missing=confirmed
    )


def _confirmed_missing(
    plan: Plan, topics: Mapping[str, LiveTopic], schema: LiveSchema | None, actuators: Actuators
) -> frozenset[str]:
    """Return the source topics that all brokers of their cluster report as missing.

    The result contains only listed or pattern-matched topics that the pipeline already reads.
    """
    awaited = topics_in_use(schema.slots) - topics.keys() if schema is not None else frozenset()
    missing = [topic for topic in plan.topics if topic.listed and topic.name in awaited]
    others = [topic.name for topic in missing if topic.read_only]
    confirmed = actuators.kafka.find_missing(others) if others else frozenset()
    external = [topic.name for topic in missing if topic.kafka is not None]
    kafka = plan.topics[0].kafka
    if kafka is None or not external:
        return confirmed
    return confirmed | actuators.clusters.find_missing(plan.namespace, kafka, external)


def ensure(plan: Plan, actuators: Actuators, *, spread: Spread | None) -> list[Outcome]:
    """Create and change the platform's topics, and check that topics on other clusters exist.

    Raises:
        TidemillError: the platform's Kafka does not answer.
    """
    outcomes = [_check_external(topic, plan.namespace, actuators) for topic in plan.topics if topic.kafka is not None]
    own = [topic for topic in plan.topics if topic.kafka is None]
    return [*outcomes, *actuators.kafka.ensure(own, spread=spread)]


def _check_external(topic: Topic, namespace: str, actuators: Actuators) -> Outcome:
    assert topic.kafka is not None  # noqa: S101 - the caller has checked it
    try:
        live = actuators.clusters.topic(namespace, topic.kafka, topic.name)
    except TidemillError as error:
        return failed(Component.TOPICS, topic.name, error)
    if live is None:
        return failed(Component.TOPICS, topic.name, missing_topic_error(topic))
    facts = {"id": live.id, "partitions": live.partitions, "replicationFactor": live.replication_factor}
    return done(Component.TOPICS, topic.name, observed=facts)
