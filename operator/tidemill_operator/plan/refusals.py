"""Which valid specs cannot be applied to what is there.

Told before anything is touched, so that the spec accepted before runs on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tidemill_contract import names
from tidemill_contract.resource.spec import AnalyticsPipeline
from tidemill_contract.tables.definition import Table
from tidemill_operator.errors import Reason, TidemillError
from tidemill_operator.plan.kafka.claims import written_by_pipelines
from tidemill_operator.plan.model import LiveFacts, LiveSchema, Owner, Plan, Topic
from tidemill_operator.plan.replay import asked, finished
from tidemill_operator.plan.versions import retyped


def refusals(pipeline: AnalyticsPipeline, plan: Plan, live: LiveFacts) -> list[TidemillError]:
    """Everything that stands against applying a plan; the field comes first in each message.

    Args:
        pipeline: the valid resource.
        plan: made of it and of `live`.
        live: what is there.
    """
    strange = written_by_pipelines(plan.namespace, plan.name, plan.schema.source)
    found = [*strange, *_topic(pipeline, plan, live), *_replay(pipeline, live.schema)]
    if live.schema is not None:
        found += _key(pipeline, live.schema)
        found += _moved(plan, live)
        found += [error for table in plan.schema.tables for error in column_changes(table, live.schema)]
    return found


def _replay(pipeline: AnalyticsPipeline, live: LiveSchema | None) -> Iterator[TidemillError]:
    if finished(pipeline, live):
        return  # what is asked for may be gone since
    try:
        asked(pipeline)
    except TidemillError as error:
        yield error


def _topic(pipeline: AnalyticsPipeline, plan: Plan, live: LiveFacts) -> Iterator[TidemillError]:
    topic, path = pipeline.spec.source.topic, "spec.source.topic"
    source = plan.topics[0]
    known = live.topics.get(source.name)
    kept = live.schema.partitions if live.schema else 0
    asked = source.partitions if not topic.managed and known else topic.partitions
    if asked is not None and asked < kept and (known is None or known.partitions < kept):
        yield TidemillError(
            Reason.NOT_SUPPORTED,
            f"{path}.partitions: topic {source.name} would have {asked} partitions, and positions of {kept} are kept;"
            " time would wait for the missing ones for ever",
            f"give the topic {kept} partitions or more",
        )
    if not topic.managed:
        return
    # Where the spec is as it was, somebody else has made them more: it runs on with all there are.
    before = _topic_before(live.schema) or {}
    if known and asked is not None and asked < known.partitions and asked != before.get("partitions"):
        yield TidemillError(
            Reason.NOT_SUPPORTED,
            f"{path}.partitions: {asked} is less than the {known.partitions} partitions that topic"
            f" {source.name} has; Kafka cannot take partitions away",
            f"write {known.partitions} or more",
        )
    if live.brokers is not None and (source.replicated or not known):
        # One that holds replicas and does not answer now is a broker still.
        most = max(live.brokers, len(known.holders) if known else 0)
        if source.replication_factor > most:
            told = "" if topic.replication_factor else " (the platform's default)"
            yield TidemillError(
                Reason.INVALID_SPEC,
                f"{path}.replicationFactor: {source.replication_factor}{told} needs as many brokers, and there"
                f" {'is 1' if most == 1 else f'are {most}'}",
                f"write at most {most}",
            )
    in_sync = source.config.get("min.insync.replicas", "1")
    if int(in_sync) > source.replication_factor:
        yield TidemillError(
            Reason.INVALID_SPEC,
            f"{path}.config.min.insync.replicas: {in_sync} is more than the replication factor"
            f" {source.replication_factor}: nothing could be written",
            f"write at most {source.replication_factor}",
        )


def _key(pipeline: AnalyticsPipeline, live: LiveSchema) -> Iterator[TidemillError]:
    if live.accepted is None:
        return
    before, after = live.accepted.get("source", {}).get("key"), pipeline.spec.source.key
    if before != after:
        yield TidemillError(
            Reason.NOT_SUPPORTED,
            f"spec.source.key: changed from {before or 'none'} to {after or 'none'}; events of one key would lie in two"
            " partitions and lose their order",
            "change it back, or make a pipeline of another name",
        )


def topics_concerned(plan: Plan, live: LiveSchema | None) -> list[str]:
    """The topics that have to be looked at before a plan is judged: its own, and the one that was read before."""
    return list(dict.fromkeys([*(topic.name for topic in plan.topics), *_read_before(plan, live)]))


def _topic_before(live: LiveSchema | None) -> Mapping[str, Any] | None:
    """The source topic as the spec had it that was accepted last; None: none was."""
    if live is None or live.accepted is None:
        return None
    topic: Mapping[str, Any] = live.accepted.get("source", {}).get("topic", {})
    return topic


def _read_before(plan: Plan, live: LiveSchema | None) -> list[str]:
    before = _topic_before(live)
    if before is None:
        return []
    return [before.get("name") or names.topic(plan.namespace, plan.name, "events")]


def _moved(plan: Plan, live: LiveFacts) -> Iterator[TidemillError]:
    after = plan.topics[0].name
    for before in _read_before(plan, live.schema):
        if before == after or before not in live.topics:  # a name that was misspelt may be put right
            continue
        yield TidemillError(
            Reason.NOT_SUPPORTED,
            f"spec.source.topic.name: changed from {before} to {after}; events that lie in {before} unread would never"
            " be counted",
            "change it back, or make a pipeline of another name",
        )


def foreign(schema: str, live: Owner | None, owner: Owner) -> Iterator[TidemillError]:
    """Why a schema that exists is not the owner's, if it is not."""
    if live == owner:
        return
    whose = "does not say whose it is"
    if live is not None:
        whose = f"belongs to {live.namespace}/{live.name} (uid {live.uid or 'none'}, cluster {live.cluster})"
    yield TidemillError(
        Reason.RESOURCE_CONFLICT,
        f"schema {schema} exists and {whose}",
        "rename the pipeline, or take the schema over with the annotation tidemill.dev/adopt: 'true'",
    )


def missing(topic: Topic) -> TidemillError:
    """The refusal of an unmanaged topic that is not there."""
    return TidemillError(
        Reason.INVALID_SPEC,
        f"spec.source.topic.name: topic {topic.name} does not exist, and managed: false forbids making it",
        "create it, or set managed: true",
    )


def gone(topic: Topic) -> TidemillError:
    """Why a topic that was deleted behind our back is not made anew."""
    return TidemillError(
        Reason.DATA_LOSS,
        f"topic {topic.name} is gone, and with it every event that was not counted ({topic.lost})",
        "make it anew with the annotation tidemill.dev/recreate-topics: 'true'; what is counted stays",
    )


def column_changes(table: Table, live: LiveSchema) -> Iterator[TidemillError]:
    """Columns that exist with another type than the plan's."""
    for name, before, after in retyped(table.columns, live.columns.get(table.name, {})):
        yield TidemillError(
            Reason.NOT_SUPPORTED,
            f"column {name} of table {table.name} holds {before} and would have to hold {after}: the type of a field"
            " that an aggregation uses was changed",
            "change the field's type back, or give the aggregation another name",
        )
