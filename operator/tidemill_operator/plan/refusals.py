"""Find the reasons why a valid spec cannot be applied to the live state."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tidemill_contract import names
from tidemill_contract.resource.kinds.kafka import KafkaSpec
from tidemill_contract.resource.spec import AnalyticsPipeline
from tidemill_contract.tables.definition import Table
from tidemill_operator.errors import Reason, TidemillError
from tidemill_operator.plan.kafka.claims import reserved_topic_errors
from tidemill_operator.plan.kafka.patterns import excess_topics_error, no_match_error
from tidemill_operator.plan.kafka.slots import restrict_to_topic
from tidemill_operator.plan.live import LiveFacts, LiveSchema, Owner
from tidemill_operator.plan.model import Plan, Topic
from tidemill_operator.plan.replay import finished_replay, requested_replay
from tidemill_operator.plan.versions import type_changes

_OWN = "the platform's own Kafka"
_UNSURE = ", but windows stay open until every broker reports the topic as missing"
_LET_CLOSE = "set the annotation tidemill.dev/recreate-topics: 'true' to close windows without the topic, or"


def refusals(pipeline: AnalyticsPipeline, plan: Plan, live: LiveFacts) -> list[TidemillError]:
    """Return all reasons why a plan cannot be applied. Each message begins with the field's path."""
    schema = plan.schema
    if (no_match := no_match_error(plan, live)) is not None:
        return [no_match]
    excess = excess_topics_error(plan)
    reserved = reserved_topic_errors(plan.namespace, plan.name, schema.own_sources, listed=bool(schema.listed_topics))
    topic = [*_partition_errors(pipeline, plan, live), *_replication_errors(pipeline, plan, live)]
    errors = [
        *([excess] if excess else []),
        *reserved,
        *_missing_source_errors(plan, live),
        *topic,
        *_replay_errors(pipeline, live.schema),
    ]
    if live.schema is not None:
        errors += _key_errors(pipeline, live.schema)
        errors += _stage_change_errors(pipeline, live.schema)
        errors += _source_change_errors(plan, live)
        errors += [error for table in plan.schema.tables for error in column_type_errors(table, live.schema)]
    return errors


def _missing_source_errors(plan: Plan, live: LiveFacts) -> Iterator[TidemillError]:
    """Yield an error for each missing topic that a new pipeline may only read."""
    is_running = live.schema is not None and live.schema.accepted is not None
    for source in plan.topics:
        if source.read_only and live.brokers is not None and source.name not in live.topics and not is_running:
            yield missing_topic_error(source)


def _replay_errors(pipeline: AnalyticsPipeline, live: LiveSchema | None) -> Iterator[TidemillError]:
    if finished_replay(pipeline, live):
        return  # a finished replay may name aggregations that no longer exist
    try:
        requested_replay(pipeline)
    except TidemillError as error:
        yield error


def _partition_errors(pipeline: AnalyticsPipeline, plan: Plan, live: LiveFacts) -> Iterator[TidemillError]:
    topic, path = pipeline.spec.source.topic, "spec.source.topic.partitions"
    source = plan.topics[0]
    if source.listed or (live.schema is not None and live.schema.slots):
        return  # if a pipeline reads several topics, missing partitions do not stop the watermark
    live_topic = live.topics.get(source.name)
    positions = live.schema.partitions if live.schema else 0
    wanted = source.partitions if not topic.managed and live_topic else topic.partitions
    if wanted is not None and wanted < positions and (live_topic is None or live_topic.partitions < positions):
        yield TidemillError(
            Reason.NOT_SUPPORTED,
            f"{path}: topic {source.name} would have {wanted} partitions, but {positions} have positions;"
            " the watermark would never advance past the missing partitions",
            f"give the topic {positions} partitions or more",
        )
    if not topic.managed:
        return
    # The topic may have more partitions than `partitions`, because another user added some. Accept this.
    before = _topic_before(live.schema) or {}
    if live_topic and wanted is not None and wanted < live_topic.partitions and wanted != before.get("partitions"):
        yield TidemillError(
            Reason.NOT_SUPPORTED,
            f"{path}: {wanted} is less than the {live_topic.partitions} partitions that topic"
            f" {source.name} has; Kafka cannot remove partitions",
            f"write {live_topic.partitions} or more",
        )


def _replication_errors(pipeline: AnalyticsPipeline, plan: Plan, live: LiveFacts) -> Iterator[TidemillError]:
    topic, path, source = pipeline.spec.source.topic, "spec.source.topic", plan.topics[0]
    if not topic.managed:
        return
    live_topic = live.topics.get(source.name)
    if live.brokers is not None and (source.enforces_replication or not live_topic):
        # Count brokers that hold replicas but do not answer, because these brokers may answer later.
        available = max(live.brokers, len(live_topic.replica_brokers) if live_topic else 0)
        if source.replication_factor > available:
            note = "" if topic.replication_factor else " (the platform's default)"
            yield TidemillError(
                Reason.INVALID_SPEC,
                f"{path}.replicationFactor: {source.replication_factor}{note} needs {source.replication_factor}"
                f" brokers, but only {'1 is' if available == 1 else f'{available} are'} available",
                f"write at most {available}",
            )
    in_sync = source.config.get("min.insync.replicas", "1")
    if int(in_sync) > source.replication_factor:
        yield TidemillError(
            Reason.INVALID_SPEC,
            f"{path}.config.min.insync.replicas: {in_sync} is more than the replication factor"
            f" {source.replication_factor}, so no record could be written",
            f"write at most {source.replication_factor}",
        )


def _key_errors(pipeline: AnalyticsPipeline, live: LiveSchema) -> Iterator[TidemillError]:
    if live.accepted is None:
        return
    before, after = live.accepted.get("source", {}).get("key"), pipeline.spec.source.key
    if before != after:
        yield TidemillError(
            Reason.NOT_SUPPORTED,
            f"spec.source.key: changed from {before or 'none'} to {after or 'none'}; events of one key would be in two"
            " partitions and lose their order",
            "change the field back, or create a pipeline with another name",
        )


def _stage_change_errors(pipeline: AnalyticsPipeline, live: LiveSchema) -> Iterator[TidemillError]:
    if live.accepted is None:
        return
    before, after = (live.accepted.get("transform") or {}).get("python"), pipeline.spec.transform.python
    if (before is None) != (after is None):
        change = "added" if before is None else "taken out"
        yield TidemillError(
            Reason.NOT_SUPPORTED,
            f"spec.transform.python: was {change}; processors would read another topic, to which their positions"
            " do not apply",
            "undo the change, or create a pipeline with another name",
        )


def topics_to_observe(plan: Plan, live: LiveSchema | None) -> list[str]:
    """Return the topics of the platform's Kafka whose state the check of a plan needs."""
    own = [topic.name for topic in plan.topics if topic.kafka is None]
    before = [] if _cluster_before(live) else _topics_before(plan, live)
    return list(dict.fromkeys([*own, *before]))


def _topic_before(live: LiveSchema | None) -> Mapping[str, Any] | None:
    if live is None or live.accepted is None:
        return None
    topic: Mapping[str, Any] = live.accepted.get("source", {}).get("topic", {})
    return topic


def _topics_before(plan: Plan, live: LiveSchema | None) -> list[str]:
    before = _topic_before(live)
    if before is None or live is None or live.accepted is None:
        return []
    if live.accepted.get("source", {}).get("topicPattern") is not None:
        return list(dict.fromkeys(slot.topic for slot in live.slots if slot.topic))
    listed: list[str] | None = live.accepted.get("source", {}).get("topics")
    return [before.get("name") or names.topic(plan.namespace, plan.name, "events")] if listed is None else listed


def _cluster_before(live: LiveSchema | None) -> str:
    kafka = live.accepted.get("source", {}).get("kafka") if live is not None and live.accepted is not None else None
    return ",".join(KafkaSpec.model_validate(kafka).servers) if kafka else ""


def _same_topics(plan: Plan, live: LiveFacts) -> bool:
    schema = live.schema or LiveSchema()
    sources = [topic for topic in plan.topics if topic.kafka is not None]
    read = {
        topic.name: (restrict_to_topic(schema, topic.name) if schema.slots else schema).topic_id for topic in sources
    }
    ids = {name: live.topics[name].id for name, topic_id in read.items() if topic_id and name in live.topics}
    return bool(ids) and all(read[name] == id_ for name, id_ in ids.items())


def _cluster_change_errors(plan: Plan, live: LiveFacts) -> Iterator[TidemillError]:
    schema = live.schema
    if schema is None or schema.accepted is None or not schema.topic_id:
        return
    before, after = _cluster_before(schema), plan.schema.source_cluster
    if before != after:
        if before and after and _same_topics(plan, live):
            return
        yield _source_change_error("spec.source.kafka.bootstrapServers", before or _OWN, after or _OWN)
        return
    names_after = plan.schema.listed_topics or (plan.schema.source,)
    if not schema.slots and (name := _topics_before(plan, schema)[0]) not in names_after:
        yield _source_change_error("spec.source.topic.name", name, ", ".join(names_after))


def _source_change_error(path: str, before: str, after: str) -> TidemillError:
    return TidemillError(
        Reason.NOT_SUPPORTED,
        f"{path}: changed from {before} to {after}, which is another topic; unread events of the former topic"
        " would never be counted",
        "change the field back, or create a pipeline with another name",
    )


def _source_change_errors(plan: Plan, live: LiveFacts) -> Iterator[TidemillError]:
    schema = live.schema
    if schema is not None and schema.slots and not plan.schema.listed_topics:
        patterned = (schema.accepted or {}).get("source", {}).get("topicPattern") is not None
        path = "spec.source.topicPattern" if patterned else "spec.source.topics"
        what = "a pattern of topics" if patterned else "a list of topics"
        yield TidemillError(
            Reason.NOT_SUPPORTED,
            f"{path}: removed, but the pipeline's positions belong to {what}",
            "list at least one topic in spec.source.topics, set spec.source.topicPattern, or create a pipeline with"
            " another name",
        )
        return
    if _cluster_before(schema) or plan.schema.source_cluster:
        yield from _cluster_change_errors(plan, live)
        return
    after = plan.schema.listed_topics or (plan.schema.source,)
    for before in [] if schema is None or schema.slots else _topics_before(plan, schema):
        if before in after or before not in live.topics:  # a topic that does not exist has no unread events
            continue
        yield TidemillError(
            Reason.NOT_SUPPORTED,
            f"spec.source.topic.name: changed from {before} to {', '.join(after)}; unread events in {before} would"
            " never be counted",
            "change the field back, or create a pipeline with another name",
        )


def ownership_errors(schema: str, live: Owner | None, owner: Owner) -> Iterator[TidemillError]:
    """Yield the error if an existing schema has another owner."""
    if live == owner:
        return
    whose = "names no owner"
    if live is not None:
        whose = f"belongs to {live.namespace}/{live.name} (uid {live.uid or 'none'}, cluster {live.cluster})"
    yield TidemillError(
        Reason.RESOURCE_CONFLICT,
        f"schema {schema} exists and {whose}",
        "rename the pipeline, or take the schema over with the annotation tidemill.dev/adopt: 'true'",
    )


def missing_topic_error(topic: Topic) -> TidemillError:
    """Return the error for an unmanaged topic that does not exist."""
    path = "spec.source.topics" if topic.listed else "spec.source.topic.name"
    leave = "remove the topic from the list"
    if topic.pattern:
        path, leave = "spec.source.topicPattern", f"change {topic.pattern} so that it does not match"
    if topic.lost:
        waits = topic.awaited
        return TidemillError(
            Reason.DATA_LOSS,
            f"{path}: topic {topic.name} is gone, and with it every event that was not counted ({topic.lost}); the"
            f" other topics are still counted{_UNSURE if waits else ''}",
            f"create it again, {_LET_CLOSE if waits else 'or'} {leave}; earlier results are kept",
        )
    if topic.pattern:
        return TidemillError(
            Reason.INVALID_SPEC,
            f"{path}: topic {topic.name} is gone, or the login has lost the permission Describe;"
            " none of the topic's events were counted",
            f"create it again, or {leave}",
        )
    if topic.kafka is not None:
        return TidemillError(
            Reason.INVALID_SPEC,
            f"{path}: topic {topic.name} does not exist at {','.join(topic.kafka.servers)}, or the"
            " login may not describe it",
            "correct the name, or allow Describe and Read on the topic",
        )
    return TidemillError(
        Reason.INVALID_SPEC,
        f"{path}: topic {topic.name} does not exist, and managed: false forbids creating it",
        "create it, or correct the name" if topic.read_only or topic.listed else "create it, or set managed: true",
    )


def deleted_topic_error(topic: Topic) -> TidemillError:
    """Return the error for a deleted source topic."""
    return TidemillError(
        Reason.DATA_LOSS,
        f"topic {topic.name} is gone, and with it every event that was not counted ({topic.lost})",
        "create it again with the annotation tidemill.dev/recreate-topics: 'true'; earlier results are kept",
    )


def column_type_errors(table: Table, live: LiveSchema) -> Iterator[TidemillError]:
    """Yield errors for existing columns whose type differs from the plan."""
    for name, before, after in type_changes(table.columns, live.columns.get(table.name, {})):
        yield TidemillError(
            Reason.NOT_SUPPORTED,
            f"column {name} of table {table.name} has the type {before} instead of {after}, because the type of a field"
            " that an aggregation uses was changed",
            "change the field's type back, or give the aggregation another name",
        )
