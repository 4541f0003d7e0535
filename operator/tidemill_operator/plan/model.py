"""The frozen data classes of plans, for any runtime."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from tidemill_contract.resource.kinds.kafka import KafkaSpec
from tidemill_contract.tables.definition import Table
from tidemill_operator.plan.live import Slot

Component = Literal["processor", "replay", "stage", "ingest", "api", "mqtt", "connect"]


@dataclass(frozen=True)
class Topic:
    """A desired Kafka topic.

    Attributes:
        managed: whether the operator creates and changes the topic.
        lost: description of the deleted topic, or empty. A deleted topic is created again only on request.
        kafka: the other Kafka cluster that has the topic, or None for the platform's own cluster.
        read_only: whether the pipeline may only read the topic.
        from_stage: whether the Python stage writes the topic.
        listed: whether the pipeline reads several topics, and this topic is one of them.
        awaited: whether windows of the pipeline stay open until the topic is read.
    """

    name: str
    partitions: int
    replication_factor: int
    config: Mapping[str, str] = field(default_factory=dict)
    managed: bool = True
    enforces_replication: bool = True
    lost: str = ""
    kafka: KafkaSpec | None = None
    read_only: bool = False
    from_stage: bool = False
    listed: bool = False
    pattern: str = ""
    awaited: bool = False


@dataclass(frozen=True)
class AggregationRow:
    """A row of `_aggregations`: one version of an aggregation and its window table."""

    name: str
    version: int
    table_name: str
    reader: str
    shape: str
    partition_days: int
    retention_ms: int


@dataclass(frozen=True)
class TableRetention:
    """The retention (in ms) and the quota (in bytes) of a system table."""

    table: str
    retention_ms: int
    quota: int


@dataclass(frozen=True)
class Schema:
    """A pipeline's desired Postgres schema.

    Attributes:
        accepted: the spec as the user wrote it, as JSON.
        listed_topics: source topics of a pipeline with several topics, else empty.
        source_cluster: addresses of the other Kafka cluster that has the source topics, or empty.
        switched_replay: name of the completed replay whose versions the API reads from now on, or empty.
        lost: descriptions of removed objects. Removed objects are created again only on request.
    """

    name: str
    owner: str
    writer: str
    reader: str
    tables: tuple[Table, ...]
    functions: tuple[tuple[str, str], ...]
    aggregations: tuple[AggregationRow, ...]
    partitions: int
    generation: int
    accepted: str = "{}"
    events_retention_ms: int | None = None
    retentions: tuple[TableRetention, ...] = ()
    source: str = ""
    listed_topics: tuple[str, ...] = ()
    pattern: str = ""
    slots: tuple[Slot, ...] = ()
    source_managed: bool = True
    source_cluster: str = ""
    outputs: tuple[str, ...] = ()
    topics_to_record: tuple[str, ...] = ()
    replay: str = ""
    switched_replay: str = ""
    abandoned: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()
    explodes: bool = False

    @property
    def own_sources(self) -> tuple[str, ...]:
        """Return the source topics on the platform's own Kafka."""
        return () if self.source_cluster else self.listed_topics or ((self.source,) if self.source else ())


@dataclass(frozen=True)
class Probe:
    """An HTTP health check of a workload."""

    path: str
    port: str
    period_seconds: int = 5


@dataclass(frozen=True)
class Reference:
    """A user's ConfigMap or Secret that a workload reads as files in a folder."""

    kind: Literal["configMap", "secret"]
    name: str


@dataclass(frozen=True)
class Workload:
    """The processes of one workload, in a cluster or on one machine.

    Attributes:
        pipeline: name of the pipeline, or None if several pipelines share the workload.
        ports: port `http` for clients and port `status` for probes and metrics. The value 0 means any free port.
        revision: hash of the settings that processes read only at their start.
        secret_sources: source of each secret file, as the name of a Secret and a key.
    """

    name: str
    namespace: str
    component: Component
    pipeline: str | None
    module: str
    replicas: int
    environment: Mapping[str, str] = field(default_factory=dict)
    configs: Mapping[str, str] = field(default_factory=dict)
    secrets: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    ports: Mapping[str, int] = field(default_factory=dict)
    readiness: Probe = Probe("/readyz", "status")
    liveness: Probe = Probe("/livez", "status", 10)
    resources: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    externally_scaled: bool = False
    scaled: bool = False
    revision: str = ""
    secret_sources: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    registry_secret: str = ""
    mqtt_secret: str = ""
    is_singleton: bool = False
    kafka_secret: str = ""
    lookups: Mapping[str, Reference] = field(default_factory=dict)
    egress_ports: tuple[int, ...] = ()
    code: str = ""
    image: str = ""


@dataclass(frozen=True)
class Connector:
    """A desired connector of Kafka Connect.

    Attributes:
        name: name in Kafka Connect.
        spec_name: name in the spec.
    """

    name: str
    spec_name: str
    config: Mapping[str, str]
    paused: bool = False
    secrets: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Replay:
    """A replay, which fills new versions of aggregations from the topic while live processors continue.

    Attributes:
        rate: limit in events per second, or 0 for no limit.
        handed_over: number of partitions that the live processors have taken over from the replay.
    """

    reader: str
    versions: Mapping[str, int]
    start_from: str = "earliest"
    rate: int = 0
    handed_over: int = 0


@dataclass(frozen=True)
class Plan:
    """The desired state of one pipeline.

    Attributes:
        excess_topics: topics that match `spec.source.topicPattern`, but exceed the maximum number of topics.
    """

    namespace: str
    name: str
    config: str
    topics: tuple[Topic, ...]
    schema: Schema
    workloads: tuple[Workload, ...]
    reclaim: Literal["Retain", "Delete"]
    replay: Replay | None = None
    connectors: tuple[Connector, ...] = ()
    excess_topics: tuple[str, ...] = ()
