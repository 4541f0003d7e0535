"""The desired Kafka topics of a pipeline."""

from __future__ import annotations

from dataclasses import replace

from tidemill_contract import names
from tidemill_contract.duration import parse_ms
from tidemill_contract.events.fields import MAX_RECORD_BYTES
from tidemill_contract.runtime import PipelineConfig
from tidemill_operator.plan.model import LiveFacts, Topic
from tidemill_operator.settings import Platform


def desired_topics(
    config: PipelineConfig, platform: Platform, live: LiveFacts, *, replicated: bool = False, all_kinds: bool = False
) -> tuple[Topic, ...]:
    """Return the source topic and the output topics.

    Args:
        config: the config, in which partitions and replication factor are filled in.
        platform: has the defaults of the output topics.
        live: the live facts. An output topic keeps its partitions if it has more, and its replication factor if the
            spec has none.
        replicated: whether the spec sets the replication factor. A factor in the spec also applies to output topics.
        all_kinds: whether to include outputs that only an earlier spec may have enabled, to release them.
    """
    spec = config.spec
    wanted = [
        ("results", spec.results.publish),
        ("anomalies", bool(spec.anomalies)),
        ("dead-letters", True),
    ]
    outputs = [names.topic(config.namespace, config.name, kind) for kind, asked in wanted if asked or all_kinds]
    follow = replicated and config.spec.source.topic.managed
    return (_source(config, follow), *(_output(name, config, platform, live, follow) for name in outputs))


def bereave(topics: tuple[Topic, ...], live: LiveFacts) -> tuple[Topic, ...]:
    """Mark the source topic as lost if it was read before and no longer exists.

    Only the source topic is marked, because events are stored nowhere else. Results are in Postgres, and output topics
    can be created again.
    """
    source, *outputs = topics
    schema, looked = live.schema, live.brokers is not None
    if not looked or schema is None or not schema.read_from or not source.managed or source.name in live.topics:
        return topics
    counted = ", ".join(f"{partition}: {offset}" for partition, offset in sorted(schema.read_to.items())[:32])
    lost = f"id {schema.read_from}; counted up to offsets {counted}"
    return (replace(source, lost=lost), *outputs)


def _source(config: PipelineConfig, replicated: bool) -> Topic:
    topic = config.spec.source.topic
    replicas = topic.replication_factor or 1
    settings = _settings(replicas, parse_ms(topic.retention)) | topic.config
    return Topic(
        config.events_topic,
        topic.partitions or 1,
        replicas,
        settings if topic.managed else {},
        managed=topic.managed,
        replicated=replicated,
    )


def _output(name: str, config: PipelineConfig, platform: Platform, live: LiveFacts, replicated: bool) -> Topic:
    known = live.topics.get(name)
    source = config.spec.source.topic
    wanted = source.replication_factor if source.managed and source.replication_factor else platform.replication_factor
    replicas = known.replication_factor if known and not replicated else wanted
    partitions = max(platform.partitions, known.partitions if known else 0)
    return Topic(name, partitions, replicas, _settings(replicas, platform.output_retention_ms), replicated=replicated)


def _settings(replicas: int, retention_ms: int) -> dict[str, str]:
    # LogAppendTime is used, because under CreateTime a record with an old timestamp is past its retention at once.
    return {
        "cleanup.policy": "delete",
        "max.message.bytes": str(MAX_RECORD_BYTES),
        "message.timestamp.type": "LogAppendTime",
        "min.insync.replicas": str(max(1, replicas - 1)),
        "retention.ms": str(retention_ms),
    }
