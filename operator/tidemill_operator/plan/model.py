"""The frozen data classes of plans: topics, Postgres objects and workloads, for any runtime."""

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
        managed: whether the operator creates and alters the topic. An unmanaged topic must already exist.
        replicated: whether the spec sets the replication factor. If not, an existing topic keeps its factor.
        lost: what was lost with the deleted topic, which is then created again only on request, or empty.
        kafka: the other cluster of a topic that is only read, or None for the platform's own cluster.
        of_others: whether the pipeline may only read the topic, because it belongs to others on the platform's
            Kafka.
        staged: whether the Python stage writes this topic for the processors.
    """

    name: str
    partitions: int
    replication_factor: int
    config: Mapping[str, str] = field(default_factory=dict)
    managed: bool = True
    replicated: bool = True
    lost: str = ""
    kafka: KafkaSpec | None = None
    of_others: bool = False
    staged: bool = False
    listed: bool = False
    pattern: str = ""


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
class KeptRows:
    """The retention (in ms) and the quota (in bytes) of a system table."""

    table: str
    retention_ms: int
    quota: int


@dataclass(frozen=True)
class Schema:
    """A pipeline's desired Postgres schema.

    Attributes:
        functions: pairs of a name and a `CREATE OR REPLACE FUNCTION` statement.
        accepted: the spec as the user wrote it, as JSON with sorted keys.
        listed: the list of source topics, or empty if the pipeline has one topic.
        pattern: the pattern that the source topics match, or empty if the spec names them.
        cluster: the brokers of the source topic's cluster, or empty for the platform's own cluster.
        switched: the reader whose versions come into force now, or empty.
        abandoned: readers of cancelled replays, whose versions are deleted.
        lost: descriptions of objects that somebody else removed, and that are created again only on request.
        explodes: whether a record may contain several events, so that keys need more than the offset.
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
    kept: tuple[KeptRows, ...] = ()
    source: str = ""
    listed: tuple[str, ...] = ()
    pattern: str = ""
    slots: tuple[Slot, ...] = ()
    managed: bool = True
    cluster: str = ""
    outputs: tuple[str, ...] = ()
    made: tuple[str, ...] = ()
    replay: str = ""
    switched: str = ""
    abandoned: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()
    explodes: bool = False

    @property
    def own_sources(self) -> tuple[str, ...]:
        """Return the source topics on the platform's own Kafka."""
        return () if self.cluster else self.listed or ((self.source,) if self.source else ())


@dataclass(frozen=True)
class Probe:
    """An HTTP check of a workload."""

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
    """The processes of one workload, described for both runtimes.

    Attributes:
        pipeline: the owning pipeline, or None if all pipelines of the namespace share the workload.
        secrets: the names of the secret files that the workload may read, by pipeline.
        ports: the requested ports: `http` for clients, `status` for probes and metrics. 0 means any free port.
        revision: a hash of the settings that processes read only at their start, or empty.
        copied: the secret files that are copied from a user's Secret, by file name, each as (Secret, key).
        alone: whether at most one process may run at a time.
        reached_ports: further ports that the processes connect to.
        image: the user's image, or empty for the image of the component.
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
    scaled_elsewhere: bool = False
    scaled: bool = False
    revision: str = ""
    copied: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    registry_secret: str = ""
    mqtt_secret: str = ""
    alone: bool = False
    kafka_secret: str = ""
    lookups: Mapping[str, Reference] = field(default_factory=dict)
    reached_ports: tuple[int, ...] = ()
    code: str = ""
    image: str = ""


@dataclass(frozen=True)
class Connector:
    """A desired connector of Kafka Connect.

    Attributes:
        called: its name in the spec.
        config: its complete config, with references instead of secrets.
    """

    name: str
    called: str
    config: Mapping[str, str]
    paused: bool = False
    secrets: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Replay:
    """A replay, which fills new versions from the topic while live processors continue.

    Attributes:
        reader: the name in `_readers`, which is also part of the consumer group's name.
        start_from: `earliest`, or a time in RFC 3339.
        rate: the maximum number of events per second, or 0 for no limit.
        handed: the number of partitions whose events live processors already count for these versions.
    """

    reader: str
    versions: Mapping[str, int]
    start_from: str = "earliest"
    rate: int = 0
    handed: int = 0


@dataclass(frozen=True)
class Plan:
    """The desired state of one pipeline.

    Attributes:
        unread: topics that match the pattern, beyond the maximum number of topics.
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
    unread: tuple[str, ...] = ()
