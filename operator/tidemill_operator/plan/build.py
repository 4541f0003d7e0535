"""Build the plan from the resource, the platform and the live facts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace

from pydantic import ValidationError

from tidemill_contract import names
from tidemill_contract.resource.source import SourceSpec, TopicSpec
from tidemill_contract.resource.spec import AnalyticsPipeline, PipelineSpec, ScalingSpec, TransformSpec
from tidemill_contract.runtime import AggregationRef, PipelineConfig
from tidemill_operator.plan.connect.connectors import desired_connectors
from tidemill_operator.plan.kafka.claims import topics_to_record
from tidemill_operator.plan.kafka.patterns import select_topics
from tidemill_operator.plan.kafka.slots import desired_slots, single_topic, topics_in_use
from tidemill_operator.plan.kafka.topics import desired_topics, mark_lost
from tidemill_operator.plan.live import LiveFacts, Owner, Slot
from tidemill_operator.plan.model import Plan, Schema, Topic
from tidemill_operator.plan.postgres.damage import mark_damage
from tidemill_operator.plan.postgres.schema import desired_schema
from tidemill_operator.plan.replay import abandoned_replays, planned_replay
from tidemill_operator.plan.restarts import processor_settings
from tidemill_operator.plan.versions import live_versions
from tidemill_operator.plan.workloads import desired_workloads
from tidemill_operator.settings import Platform

RECREATE = "tidemill.dev/recreate-topics"


def build_plan(
    pipeline: AnalyticsPipeline,
    platform: Platform,
    generation: int,
    live: LiveFacts | None = None,
    *,
    switch: bool = True,
) -> Plan:
    """Return the plan of a valid resource.

    If the processors' settings are unchanged, the config keeps the generation number of the accepted spec. With
    `switch`, the API reads the results of a replay once the replay is complete.
    """
    facts = live or LiveFacts()
    config = resolve_config(pipeline, platform, generation, facts)
    if (kept_generation := _kept_generation(config, pipeline, platform, facts)) is not None:
        config = config.model_copy(update={"generation": kept_generation})
    replay = planned_replay(pipeline, config, facts.schema)
    switched_replay = ""
    recreate = (pipeline.metadata.annotations or {}).get(RECREATE) == "true"
    slots = _slots(config, platform, facts, recreate=recreate)
    partitions = sum(slot.reading for slot in slots) or config.spec.source.topic.partitions or 1
    if switch and replay and replay.handed_over and replay.handed_over >= partitions:
        # A replay is complete when it has handed all partitions over to the live processors.
        config, switched_replay, replay = _switch(config, replay.versions), replay.reader, None
    spec = pipeline.spec.model_dump(mode="json", by_alias=True, exclude_unset=True)
    schema = replace(
        desired_schema(config, replay),
        accepted=json.dumps(spec, sort_keys=True),
        switched_replay=switched_replay,
        abandoned=abandoned_replays(replay.reader if replay else switched_replay, facts.schema),
    )
    topics = desired_topics(
        config, platform, facts, factor_given=pipeline.spec.source.topic.replication_factor is not None
    )
    awaited = topics_in_use(slots)
    topics = tuple(replace(topic, awaited=topic.name in awaited) for topic in topics)
    if not recreate:
        schema = mark_damage(schema, facts.schema)
        topics = topics if platform.recreate_topics else mark_lost(topics, facts)
    return Plan(
        namespace=config.namespace,
        name=config.name,
        config=config.to_json(),
        topics=topics,
        schema=_with_topics(_with_slots(schema, slots, config), topics, config, facts),
        workloads=desired_workloads(config, platform, facts.replicas, replay),
        reclaim=pipeline.spec.reclaim_policy,
        replay=replay,
        connectors=desired_connectors(config, platform, owner_of(pipeline, platform)),
        excess_topics=tuple(select_topics(pipeline.spec.source, facts)[1]),
    )


def _with_topics(schema: Schema, topics: tuple[Topic, ...], config: PipelineConfig, facts: LiveFacts) -> Schema:
    count, source = len(config.source_topics), config.spec.source
    outputs = topics[count:]
    return replace(
        schema,
        source=topics[0].name if count else "",
        source_managed=source.topic.managed,
        source_cluster=",".join(source.kafka.servers) if source.kafka else "",
        outputs=tuple(topic.name for topic in outputs),
        topics_to_record=topics_to_record(topics, facts, namespace=config.namespace, name=config.name),
    )


def _slots(config: PipelineConfig, platform: Platform, facts: LiveFacts, *, recreate: bool) -> tuple[Slot, ...]:
    """Return the slots (numbered partitions) of a pipeline with several topics.

    If the user has confirmed the loss of missing topics (`recreate`), all missing topics count as deleted.
    """
    source, limits, topics = config.spec.source, platform.limits, config.source_topics
    if not source.is_multi_topic:
        return ()
    former = single_topic(facts.schema, config.events_topic)
    certain = [
        name
        for name in topics
        if recreate
        or name in facts.confirmed_missing
        or (source.kafka is None and limits.may_manage(name, config.namespace))
    ]
    return desired_slots(topics, facts, former, certain=certain)


def _with_slots(schema: Schema, slots: tuple[Slot, ...], config: PipelineConfig) -> Schema:
    source = config.spec.source
    if not source.is_multi_topic:
        return schema
    pattern = source.topic_pattern or ""
    return replace(schema, slots=slots, listed_topics=config.source_topics, pattern=pattern, partitions=len(slots))


def _switch(config: PipelineConfig, versions: Mapping[str, int]) -> PipelineConfig:
    refs = tuple(ref.model_copy(update={"version": versions.get(ref.name, ref.version)}) for ref in config.aggregations)
    return config.model_copy(update={"aggregations": refs})


def resolve_config(pipeline: AnalyticsPipeline, platform: Platform, generation: int, live: LiveFacts) -> PipelineConfig:
    """Return the workloads' config: the spec with every default filled in."""
    namespace, name, spec = pipeline.metadata.namespace, pipeline.metadata.name, pipeline.spec
    source = spec.source.model_copy(update={"topics": select_topics(spec.source, live)[0] or None})
    if not source.is_multi_topic:
        topic = _topic_settings(spec.source.topic, names.topic(namespace, name, "events"), platform, live)
    else:
        topic = _multi_topic_settings(source, live)
    partitions = topic.partitions or 1
    scaling = _with_default_max_replicas(spec.processor.scaling, partitions)
    required = platform.auth_required if spec.auth.required is None else spec.auth.required
    resolved = spec.model_copy(
        update={
            "source": source.model_copy(update={"topic": topic}),
            "auth": spec.auth.model_copy(update={"required": required}),
            "processor": spec.processor.model_copy(update={"scaling": scaling}),
            "transform": _transform(spec.transform, partitions),
        }
    )
    versions = live_versions(resolved, live.schema)
    refs = tuple(AggregationRef(name=name, version=version) for name, version in versions.items())
    return PipelineConfig(
        namespace=namespace,
        name=name,
        generation=generation,
        spec=resolved,
        aggregations=refs,
        only_read=True if _belongs_to_others(topic, spec, platform, namespace) else None,
    )


def _belongs_to_others(topic: TopicSpec, spec: PipelineSpec, platform: Platform, namespace: str) -> bool:
    return (
        spec.source.kafka is None
        and not spec.source.is_multi_topic
        and not platform.limits.may_manage(topic.name or "", namespace)
    )


def _kept_generation(
    config: PipelineConfig, pipeline: AnalyticsPipeline, platform: Platform, live: LiveFacts
) -> int | None:
    """Return the accepted spec's generation, or None if the new spec changes the processors' config."""
    schema = live.schema
    if schema is None or schema.accepted is None or schema.owner != owner_of(pipeline, platform):
        return None
    try:
        accepted = PipelineSpec.model_validate(schema.accepted)
    except ValidationError:  # the current Tidemill version no longer accepts the spec
        return None
    before = resolve_config(pipeline.model_copy(update={"spec": accepted}), platform, schema.generation, live)
    return schema.generation if processor_settings(before) == processor_settings(config) else None


def owner_of(pipeline: AnalyticsPipeline, platform: Platform) -> Owner:
    """Return the owner to record on objects that outlive the resource."""
    metadata = pipeline.metadata
    return Owner(metadata.namespace, metadata.name, metadata.uid or "", platform.cluster_id)


def _topic_settings(topic: TopicSpec, default_name: str, platform: Platform, live: LiveFacts) -> TopicSpec:
    name = topic.name or default_name
    live_topic = live.topics.get(name)
    default = live_topic.partitions if live_topic else platform.partitions
    # Create every partition that has a stored position, because a missing partition would stop the watermark.
    stored_partitions = live.schema.partitions if live.schema else 0
    partitions = max(topic.partitions or default, live_topic.partitions if live_topic else 0, stored_partitions)
    replicas = topic.replication_factor or (
        live_topic.replication_factor if live_topic else platform.replication_factor
    )
    if not topic.managed and live_topic:
        partitions, replicas = live_topic.partitions, live_topic.replication_factor
    # Sorted keys give equal texts for equal resources.
    config = dict(sorted(topic.config.items()))
    update = {"name": name, "partitions": partitions, "replication_factor": replicas, "config": config}
    return topic.model_copy(update=update)


def _transform(transform: TransformSpec, partitions: int) -> TransformSpec:
    python = transform.python
    if python is None or python.scaling is None:
        return transform
    scaling = _with_default_max_replicas(python.scaling, partitions)
    return transform.model_copy(update={"python": python.model_copy(update={"scaling": scaling})})


def _multi_topic_settings(source: SourceSpec, live: LiveFacts) -> TopicSpec:
    """Return the topic settings of a source with several topics.

    `partitions` is the highest partition count among the source's topics.
    """
    live_topics = (live.topics.get(name) for name in source.topics or ())
    return source.topic.model_copy(update={"partitions": max((t.partitions for t in live_topics if t), default=1)})


def _with_default_max_replicas(scaling: ScalingSpec | None, partitions: int) -> ScalingSpec | None:
    if scaling is None or scaling.max_replicas is not None:
        return scaling
    return scaling.model_copy(update={"max_replicas": partitions})
