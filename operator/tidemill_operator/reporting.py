"""Creates the report of a pass from the outcomes of the components."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from typing import Any

from tidemill_contract.resource.kinds.kafka import KafkaSpec
from tidemill_contract.resource.spec import AnalyticsPipeline
from tidemill_operator.actuators.base import Actuators
from tidemill_operator.errors import TidemillError
from tidemill_operator.outcome import Component, Outcome
from tidemill_operator.plan.build import owner_of
from tidemill_operator.plan.kafka.slots import restrict_to_topic
from tidemill_operator.plan.kafka.topics import processor_topic
from tidemill_operator.plan.live import LiveFacts, LiveReplay, LiveSchema, Owner
from tidemill_operator.plan.model import Plan
from tidemill_operator.plan.postgres.failures import failure_errors
from tidemill_operator.plan.postgres.lookups import lookup_outcomes
from tidemill_operator.plan.postgres.losses import loss_errors, missed_text
from tidemill_operator.plan.postgres.retention import quota_errors
from tidemill_operator.plan.replay import DONE, REPLAYING, finished_replay
from tidemill_operator.plan.versions import LIVE
from tidemill_operator.settings import Platform
from tidemill_operator.status import Report

_MAX_MISSED = 1024


def build_report(
    pipeline: AnalyticsPipeline,
    plan: Plan,
    live: LiveFacts,
    outcomes: Sequence[Outcome],
    platform: Platform,
    actuators: Actuators,
) -> Report:
    """Return the report about the spec that the pass applied."""
    owner = owner_of(pipeline, platform)
    managed = {topic.name: topic.managed for topic in plan.topics}
    places = {topic.name: _place(topic.kafka) for topic in plan.topics if topic.kafka is not None}
    observed = [outcome for outcome in outcomes if outcome.component == Component.TOPICS and outcome.observed]
    topics = [
        {"name": o.name, **o.observed, "managed": managed.get(o.name, True), **places.get(o.name, {})} for o in observed
    ]
    closed = live.schema.closed_until if live.schema else {}
    return Report(
        generation=0,
        outcomes=[*outcomes, *lookup_outcomes(pipeline.spec, live.schema, owner)],
        suspended=pipeline.spec.suspend,
        topics=sorted(topics, key=lambda item: list(managed).index(str(item["name"]))),
        schema=plan.schema.name,
        endpoints=actuators.runtime.endpoints(plan.namespace, plan.name),
        aggregations=[
            _aggregation(row.name, row.version, closed.get((row.name, row.version)))
            for row in plan.schema.aggregations
            if row.reader == LIVE
        ],
        replay=_replay_status(pipeline, plan, live.schema),
        connectors=_connectors(plan, outcomes),
        loss_errors=_loss_errors(plan, live, owner),
        quota_errors=quota_errors(pipeline.spec, live.schema, owner),
        failure_errors=failure_errors(live.schema, owner),
    )


def _place(kafka: KafkaSpec) -> dict[str, Any]:
    return {"kafka": kafka.model_dump(mode="json", by_alias=True, exclude_none=True)}


def _connectors(plan: Plan, outcomes: Sequence[Outcome]) -> list[Mapping[str, Any]] | None:
    """Return the status items of the connectors, or None if Connect does not answer."""
    own = [outcome for outcome in outcomes if outcome.component == Component.CONNECTORS]
    if plan.connectors and not any(outcome.observed for outcome in own):
        return None
    return [outcome.observed for outcome in own if outcome.observed]


def _replay_status(pipeline: AnalyticsPipeline, plan: Plan, live: LiveSchema | None) -> dict[str, Any]:
    reader = plan.replay.reader if plan.replay else plan.schema.switched_replay or finished_replay(pipeline, live)
    live_replay = live.replays.get(reader, LiveReplay()) if live else LiveReplay()
    missed_events: dict[str, Any] = {"missed": text[:_MAX_MISSED]} if (text := missed_text(live_replay.losses)) else {}
    if plan.replay is None:
        return {"reader": reader, "phase": DONE, **missed_events} if reader else {}
    return {
        "reader": reader,
        "phase": REPLAYING,
        "versions": dict(plan.replay.versions),
        "processed": live_replay.processed,
        "left": live_replay.left,
        "partitionsHandedOver": live_replay.handed_over,
        **missed_events,
    }


def _loss_errors(plan: Plan, live: LiveFacts, owner: Owner) -> list[TidemillError]:
    if live.schema is None or live.schema.owner != owner:
        return []
    if plan.schema.listed_topics:
        schemas = [(name, restrict_to_topic(live.schema, name)) for name in plan.schema.listed_topics]
        return [error for name, schema in schemas for error in loss_errors(name, live.topics.get(name), schema)]
    source = processor_topic(plan.topics, plan.namespace, plan.name).name
    return loss_errors(source, live.topics.get(source), live.schema)


def _aggregation(name: str, version: int, closed_until: int | None) -> dict[str, Any]:
    item: dict[str, Any] = {"name": name, "version": version}
    if closed_until is not None:
        moment = dt.datetime(1970, 1, 1, tzinfo=dt.UTC) + dt.timedelta(milliseconds=closed_until)
        item["closedUntil"] = moment.strftime("%Y-%m-%dT%H:%M:%SZ")
    return item
