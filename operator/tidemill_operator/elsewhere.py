"""Observes and ensures the topics of a plan, both on the platform's own Kafka and on the source's cluster."""

from __future__ import annotations

from collections.abc import Sequence

from tidemill_operator.actuators.base import Actuators
from tidemill_operator.errors import TidemillError
from tidemill_operator.outcome import Component, Outcome, done, failed
from tidemill_operator.plan.kafka.replication import Spread
from tidemill_operator.plan.live import LiveTopic
from tidemill_operator.plan.model import Plan, Topic
from tidemill_operator.plan.refusals import missing


def observe(plan: Plan, own: Sequence[str], actuators: Actuators) -> dict[str, LiveTopic]:
    """Return the existing topics by name: those of `own` on the platform's Kafka, and source topics on other clusters.

    Raises:
        TidemillError: a cluster does not answer, or cannot be read.
    """
    found = dict(actuators.kafka.observe(own))
    for topic in plan.topics:
        if topic.kafka is not None and (live := actuators.clusters.topic(plan.namespace, topic.kafka, topic.name)):
            found[topic.name] = live
    return found


def ensure(plan: Plan, actuators: Actuators, *, spread: Spread | None) -> list[Outcome]:
    """Make the platform's topics match the plan, and check a source on another cluster, which is never changed.

    Raises:
        TidemillError: the platform's Kafka does not answer.
    """
    outcomes = [_checked(topic, plan.namespace, actuators) for topic in plan.topics if topic.kafka is not None]
    own = [topic for topic in plan.topics if topic.kafka is None]
    return [*outcomes, *actuators.kafka.ensure(own, spread=spread)]


def _checked(topic: Topic, namespace: str, actuators: Actuators) -> Outcome:
    assert topic.kafka is not None  # noqa: S101 - the caller has checked it
    try:
        live = actuators.clusters.topic(namespace, topic.kafka, topic.name)
    except TidemillError as error:
        return failed(Component.TOPICS, topic.name, error)
    if live is None:
        return failed(Component.TOPICS, topic.name, missing(topic))
    facts = {"id": live.id, "partitions": live.partitions, "replicationFactor": live.replication_factor}
    return done(Component.TOPICS, topic.name, observed=facts)
