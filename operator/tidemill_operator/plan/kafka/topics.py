"""Plan the Kafka topics of a pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tidemill_contract import names
from tidemill_contract.duration import parse_ms
from tidemill_contract.events.fields import MAX_RECORD_BYTES
from tidemill_contract.runtime import PipelineConfig
from tidemill_operator.plan.kafka.slots import restrict_to_topic
from tidemill_operator.plan.live import LiveFacts
from tidemill_operator.plan.model import Topic
from tidemill_operator.settings import Platform


def desired_topics(
    config: PipelineConfig, platform: Platform, live: LiveFacts, *, factor_given: bool = False, all_kinds: bool = False
) -> tuple[Topic, ...]:
    """Return the source topics, the topic of the Python stage, and the output topics.

    With `all_kinds`, output topics that an earlier spec may have enabled are included.
    """
    spec = config.spec
    kinds = [
        ("results", spec.results.publish),
        ("anomalies", bool(spec.anomalies)),
        ("dead-letters", True),
    ]
    outputs = [names.topic(config.namespace, config.name, kind) for kind, enabled in kinds if enabled or all_kinds]
    enforces_replication = factor_given and config.spec.source.topic.managed
    sources = _sources(config, platform, live, enforces_replication)
    stage = [_stage(config, sources[0], live, platform)] if spec.transform.python is not None else []
    return (*sources, *stage, *(_output(name, config, platform, live, enforces_replication) for name in outputs))


def processor_topic(topics: Sequence[Topic], namespace: str, name: str) -> Topic:
    """Return the topic that processors read. With a Python stage, this is the topic that the stage writes."""
    stage = names.topic(namespace, name, "stage")
    return next((topic for topic in topics if topic.name == stage), topics[0])


def mark_lost(topics: tuple[Topic, ...], live: LiveFacts) -> tuple[Topic, ...]:
    """Mark a missing topic as lost if the pipeline has read the topic."""
    schema, observed = live.schema, live.brokers is not None
    if not observed or schema is None:
        return topics

    def marked(topic: Topic) -> Topic:
        topic_schema = restrict_to_topic(schema, topic.name) if topic.listed else schema
        must_exist = topic.listed or (topic.managed and (topic is topics[0] or topic.from_stage))
        if not topic_schema.topic_id or not must_exist or topic.name in live.topics:
            return topic
        offsets = sorted(topic_schema.next_offsets.items())[:32]
        counted = ", ".join(f"{partition}: {offset}" for partition, offset in offsets)
        return replace(topic, lost=f"id {topic_schema.topic_id}; counted up to offsets {counted}")

    return tuple(map(marked, topics))


def _sources(
    config: PipelineConfig, platform: Platform, live: LiveFacts, enforces_replication: bool
) -> tuple[Topic, ...]:
    source = _source(config, enforces_replication)
    if not config.spec.source.is_multi_topic:
        return (source,)
    topics = []
    for name in config.source_topics:
        live_topic = live.topics.get(name)
        partitions, replicas = (live_topic.partitions, live_topic.replication_factor) if live_topic else (1, 1)
        read_only = source.kafka is None and not platform.limits.may_manage(name, config.namespace)
        topic = replace(source, name=name, partitions=partitions, replication_factor=replicas)
        topics.append(replace(topic, read_only=read_only, listed=True, pattern=config.spec.source.topic_pattern or ""))
    return tuple(topics)


def _source(config: PipelineConfig, enforces_replication: bool) -> Topic:
    topic = config.spec.source.topic
    replicas = topic.replication_factor or 1
    settings = _settings(replicas, parse_ms(topic.retention)) | topic.config
    return Topic(
        config.events_topic,
        topic.partitions or 1,
        replicas,
        settings if topic.managed else {},
        managed=topic.managed,
        enforces_replication=enforces_replication,
        kafka=config.spec.source.kafka,
        read_only=bool(config.only_read),
    )


def _stage(config: PipelineConfig, source: Topic, live: LiveFacts, platform: Platform) -> Topic:
    topic, name = config.spec.source.topic, config.topic("stage")
    live_topic = live.topics.get(name)
    default = source.replication_factor if topic.managed else platform.replication_factor
    enforces_replication = source.enforces_replication and topic.managed
    replicas = live_topic.replication_factor if live_topic and not enforces_replication else default
    partitions = max(source.partitions, live_topic.partitions if live_topic else 0)
    settings = _settings(replicas, parse_ms(topic.retention))
    return Topic(name, partitions, replicas, settings, enforces_replication=enforces_replication, from_stage=True)


def _output(
    name: str, config: PipelineConfig, platform: Platform, live: LiveFacts, enforces_replication: bool
) -> Topic:
    live_topic = live.topics.get(name)
    source = config.spec.source.topic
    wanted = source.replication_factor if source.managed and source.replication_factor else platform.replication_factor
    replicas = live_topic.replication_factor if live_topic and not enforces_replication else wanted
    partitions = max(platform.partitions, live_topic.partitions if live_topic else 0)
    return Topic(
        name,
        partitions,
        replicas,
        _settings(replicas, platform.output_retention_ms),
        enforces_replication=enforces_replication,
    )


def _settings(replicas: int, retention_ms: int) -> dict[str, str]:
    # With CreateTime, Kafka could delete records with old timestamps at once.
    return {
        "cleanup.policy": "delete",
        "max.message.bytes": str(MAX_RECORD_BYTES),
        "message.timestamp.type": "LogAppendTime",
        "min.insync.replicas": str(max(1, replicas - 1)),
        "retention.ms": str(retention_ms),
    }
