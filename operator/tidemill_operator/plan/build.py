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
from tidemill_operator.plan.kafka.claims import made
from tidemill_operator.plan.kafka.patterns import topics_of
from tidemill_operator.plan.kafka.slots import desired_slots, only_topic, read_topics
from tidemill_operator.plan.kafka.topics import bereave, desired_topics
from tidemill_operator.plan.live import LiveFacts, Owner, Slot
from tidemill_operator.plan.model import Plan, Schema, Topic
from tidemill_operator.plan.postgres.damage import bereaved
from tidemill_operator.plan.postgres.schema import desired_schema
from tidemill_operator.plan.replay import abandoned, planned_replay
from tidemill_operator.plan.restarts import read_by_processors
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
    config = resolve(pipeline, platform, generation, facts)
    if (kept := _kept(config, pipeline, platform, facts)) is not None:
        config = config.model_copy(update={"generation": kept})
    replay = planned_replay(pipeline, config, facts.schema)
    switched = ""
    asked = (pipeline.metadata.annotations or {}).get(RECREATE) == "true"
    slots = _slots(config, platform, facts, asked=asked)
    read = sum(slot.reading for slot in slots) or config.spec.source.topic.partitions or 1
    if switch and replay and replay.handed and replay.handed >= read:
        # A replay is complete when it has handed all partitions over to the live processors.
        config, switched, replay = _switch(config, replay.versions), replay.reader, None
    written = pipeline.spec.model_dump(mode="json", by_alias=True, exclude_unset=True)
    schema = replace(
        desired_schema(config, replay),
        accepted=json.dumps(written, sort_keys=True),
        switched=switched,
        abandoned=abandoned(replay.reader if replay else switched, facts.schema),
    )
    topics = desired_topics(
        config, platform, facts, replicated=pipeline.spec.source.topic.replication_factor is not None
    )
    awaited = read_topics(slots)
    topics = tuple(replace(topic, awaited=topic.name in awaited) for topic in topics)
    if not asked:
        schema = bereaved(schema, facts.schema)
        topics = topics if platform.recreate_topics else bereave(topics, facts)
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
        unread=tuple(topics_of(pipeline.spec.source, facts)[1]),
    )


def _with_topics(schema: Schema, topics: tuple[Topic, ...], config: PipelineConfig, facts: LiveFacts) -> Schema:
    count, source = len(config.source_topics), config.spec.source
    outputs = topics[count:]
    return replace(
        schema,
        source=topics[0].name if count else "",
        managed=source.topic.managed,
        cluster=",".join(source.kafka.servers) if source.kafka else "",
        outputs=tuple(topic.name for topic in outputs),
        made=made(topics, facts, namespace=config.namespace, name=config.name),
    )


def _slots(config: PipelineConfig, platform: Platform, facts: LiveFacts, *, asked: bool) -> tuple[Slot, ...]:
    """Return the slots (numbered partitions) of a pipeline with several topics.

    If the user has confirmed the loss of missing topics (`asked`), all missing topics count as deleted.
    """
    source, limits, topics = config.spec.source, platform.limits, config.source_topics
    if not source.several:
        return ()
    former = only_topic(facts.schema, config.events_topic)
    certain = [
        name
        for name in topics
        if asked or name in facts.gone or (source.kafka is None and limits.own(name, config.namespace))
    ]
    return desired_slots(topics, facts, former, certain=certain)


def _with_slots(schema: Schema, slots: tuple[Slot, ...], config: PipelineConfig) -> Schema:
    source = config.spec.source
    if not source.several:
        return schema
    pattern = source.topic_pattern or ""
    return replace(schema, slots=slots, listed=config.source_topics, pattern=pattern, partitions=len(slots))


def _switch(config: PipelineConfig, versions: Mapping[str, int]) -> PipelineConfig:
    refs = tuple(ref.model_copy(update={"version": versions.get(ref.name, ref.version)}) for ref in config.aggregations)
    return config.model_copy(update={"aggregations": refs})


def resolve(pipeline: AnalyticsPipeline, platform: Platform, generation: int, live: LiveFacts) -> PipelineConfig:
    """Return the workloads' config: the spec with every default filled in."""
    namespace, name, spec = pipeline.metadata.namespace, pipeline.metadata.name, pipeline.spec
    source = spec.source.model_copy(update={"topics": topics_of(spec.source, live)[0] or None})
    if not source.several:
        topic = _topic(spec.source.topic, names.topic(namespace, name, "events"), platform, live)
    else:
        topic = _largest(source, live)
    partitions = topic.partitions or 1
    required = platform.auth_required if spec.auth.required is None else spec.auth.required
    resolved = spec.model_copy(
        update={
            "source": source.model_copy(update={"topic": topic}),
            "auth": spec.auth.model_copy(update={"required": required}),
            "processor": spec.processor.model_copy(update={"scaling": _bounded(spec.processor.scaling, partitions)}),
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
        spec.source.kafka is None and not spec.source.several and not platform.limits.own(topic.name or "", namespace)
    )


def _kept(config: PipelineConfig, pipeline: AnalyticsPipeline, platform: Platform, live: LiveFacts) -> int | None:
    """Return the accepted spec's generation, or None if the new spec changes the processors' config."""
    schema = live.schema
    if schema is None or schema.accepted is None or schema.owner != owner_of(pipeline, platform):
        return None
    try:
        accepted = PipelineSpec.model_validate(schema.accepted)
    except ValidationError:  # the current Tidemill version no longer accepts the spec
        return None
    before = resolve(pipeline.model_copy(update={"spec": accepted}), platform, schema.generation, live)
    return schema.generation if read_by_processors(before) == read_by_processors(config) else None


def owner_of(pipeline: AnalyticsPipeline, platform: Platform) -> Owner:
    """Return the owner to record on objects that outlive the resource."""
    metadata = pipeline.metadata
    return Owner(metadata.namespace, metadata.name, metadata.uid or "", platform.cluster_id)


def _topic(topic: TopicSpec, default_name: str, platform: Platform, live: LiveFacts) -> TopicSpec:
    name = topic.name or default_name
    live_topic = live.topics.get(name)
    default = live_topic.partitions if live_topic else platform.partitions
    # Create every partition that has a stored position, because a missing partition would stop the watermark.
    kept = live.schema.partitions if live.schema else 0
    partitions = max(topic.partitions or default, live_topic.partitions if live_topic else 0, kept)
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
    scaling = _bounded(python.scaling, partitions)
    return transform.model_copy(update={"python": python.model_copy(update={"scaling": scaling})})


def _largest(source: SourceSpec, live: LiveFacts) -> TopicSpec:
    """Return the topic settings of a source with several topics.

    `partitions` is the highest partition count among the source's topics.
    """
    live_topics = (live.topics.get(name) for name in source.topics or ())
    return source.topic.model_copy(update={"partitions": max((t.partitions for t in live_topics if t), default=1)})


def _bounded(scaling: ScalingSpec | None, partitions: int) -> ScalingSpec | None:
    if scaling is None or scaling.max_replicas is not None:
        return scaling
    return scaling.model_copy(update={"max_replicas": partitions})
