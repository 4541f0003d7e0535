"""The data model of plans: topics, Postgres objects and workloads, for any runtime. Frozen, no I/O, no clock."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from tidemill_contract.functions.feeds import Feeds
from tidemill_contract.tables.definition import Table
from tidemill_contract.tables.kept import Kept

Component = Literal["processor", "replay", "ingest", "api"]


@dataclass(frozen=True)
class Topic:
    """A desired Kafka topic.

    Attributes:
        managed: False: the topic must exist and is never altered.
        replicated: whether the spec sets the replication factor; otherwise an existing topic keeps its own.
        lost: what was lost with a deleted topic, which is not created again without a request. Empty: nothing was
            lost, or creating it is allowed.
    """

    name: str
    partitions: int
    replication_factor: int
    config: Mapping[str, str] = field(default_factory=dict)
    managed: bool = True
    replicated: bool = True
    lost: str = ""


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
    """The retention (ms) and quota (bytes) of a system table."""

    table: str
    retention_ms: int
    quota: int


@dataclass(frozen=True)
class Schema:
    """A pipeline's desired Postgres schema.

    Attributes:
        partitions: number of rows in `_offsets` (created before Kafka's partitions).
        functions: (name, `CREATE OR REPLACE FUNCTION …` text with the schema quoted inside); owner-owned.
        generation: value of `_generation`: of the last spec that changed what processors read.
        accepted: the spec as written, as stable JSON; stored beside the generation.
        events_retention_ms: how long raw events are kept; None: they are not stored.
        kept: retention and quota of system tables.
        source: the source topic.
        managed: whether the pipeline manages the source topic, so that no other may use it.
        outputs: the output topics.
        made: topics to record as created for it.
        replay: the reader of the current replay; empty: there is none.
        switched: the reader whose versions come into force now; empty: none.
        abandoned: readers of cancelled replays, whose versions are deleted.
        lost: parts that somebody else removed, which are not created again without a request. Empty: nothing was
            lost, or creating it is allowed.
        explodes: whether a record may be several events, so that keys need all their columns.
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
    managed: bool = True
    outputs: tuple[str, ...] = ()
    made: tuple[str, ...] = ()
    replay: str = ""
    switched: str = ""
    abandoned: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()
    explodes: bool = False


@dataclass(frozen=True)
class Probe:
    """An HTTP check of a workload."""

    path: str
    port: str
    period_seconds: int = 5


@dataclass(frozen=True)
class Workload:
    """Processes to run, in a description for both runtimes.

    Attributes:
        name: unique in the namespace, e.g. `flights-processor`, `tidemill-ingest`.
        pipeline: the pipeline that owns it; None: shared by all pipelines of the namespace.
        module: Python module to run (`python -m …`).
        environment: plain TIDEMILL_… variables, the same in both runtimes; the runtime adds addresses and paths.
        configs: config files that it reads, file name → text.
        secrets: pipelines whose secret folders it reads, with the file names it may see.
        ports: name → wanted port (0: any): `http` is for clients, `status` for probes and metrics.
        scaled_elsewhere: whether an autoscaler sets the number of replicas; without one, `replicas` applies.
        scaled: whether Tidemill scales it by lag, and stores its decisions.
        revision: hash of what its processes only read at their start; a change needs new processes. Empty: they
            follow changes themselves.
        registry_secret: the user's Secret with the credentials of the pipeline's schema registry; empty: none.
        reached_ports: ports that its processes connect to, beyond those of the platform's servers.
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
    registry_secret: str = ""
    reached_ports: tuple[int, ...] = ()


@dataclass(frozen=True)
class Replay:
    """A replay, which fills versions from the topic beside live traffic.

    Attributes:
        reader: its name in `_readers`, which is also part of its consumer group's name.
        versions: by aggregation.
        start_from: earliest, or a time in RFC 3339.
        rate: maximum number of events per second; 0: no limit.
        handed: partitions that live processors already count for these versions.
    """

    reader: str
    versions: Mapping[str, int]
    start_from: str = "earliest"
    rate: int = 0
    handed: int = 0


@dataclass(frozen=True)
class Plan:
    """Everything that one pipeline needs.

    Attributes:
        replay: the current replay; None: there is none.
    """

    namespace: str
    name: str
    config: str
    topics: tuple[Topic, ...]
    schema: Schema
    workloads: tuple[Workload, ...]
    reclaim: Literal["Retain", "Delete"]
    replay: Replay | None = None


@dataclass(frozen=True)
class Owner:
    """The resource that owns an object; `cluster` distinguishes clusters that share a Postgres."""

    namespace: str
    name: str
    uid: str
    cluster: str


@dataclass(frozen=True)
class LiveTopic:
    """A live topic.

    Attributes:
        replication_factor: of the partition with the fewest replicas.
        id: Kafka's topic id, which changes if the topic is created again.
        holders: brokers with current or future replicas, whether they answer or not.
    """

    partitions: int
    replication_factor: int
    id: str = ""
    holders: frozenset[int] = frozenset()


@dataclass(frozen=True)
class LiveReplay:
    """The live state of a replay.

    Attributes:
        switched: whether its versions are in force.
        handed: partitions that live processors count for its versions.
        processed: number of counted events.
        left: number of events that it still has to count.
        losses: events that were no longer in the topic.
    """

    switched: bool = False
    handed: int = 0
    processed: int = 0
    left: int = 0
    losses: tuple[Loss, ...] = ()


@dataclass(frozen=True)
class Loss:
    """Offsets of a partition that Kafka lost before they were read, or after they were counted.

    Attributes:
        reason: from the processors: topic_recreated, expired or truncated.
        epoch: of the positions.
        first, end: offsets, the end excluded; None: unknown.
    """

    reason: str
    partition: int
    epoch: int
    first: int
    end: int | None


@dataclass(frozen=True)
class Failing:
    """A failing duty of an aggregation, or data that was skipped in it; the first of its kind within a day.

    Attributes:
        aggregation: its name; empty: the whole pipeline.
        duty: name of the duty in processors: publish, scan, …
        reason: the error.
        window: of skipped data the window, if any; `group` is its group, `metrics` the missing metrics.
        more: whether more of the same kind was skipped.
    """

    aggregation: str
    duty: str
    reason: str
    window: str = ""
    group: str = ""
    metrics: tuple[str, ...] = ()
    more: bool = False


@dataclass(frozen=True)
class LiveSchema:
    """A pipeline's live schema.

    Attributes:
        owner: from the schema's comment; None: it names none.
        shapes: of every aggregation version, by (name, version).
        feeds: the columns that get values, by (name, version).
        readers: the readers that fill versions, by (name, version).
        replays: by reader.
        columns: SQL types as Postgres spells them, by table and column.
        generation: value of `_generation`.
        accepted: the last accepted spec, as written; None: there is none yet.
        closed_until: epoch milliseconds by (name, version); None: nothing is closed.
        partitions: number of source partitions with positions.
        missing_positions: partitions whose positions were deleted.
        emptied: versions, as (name, version), that batches were merged into, but whose tables are empty.
        read_from: Kafka's id of the read topic; empty: none was read.
        read_before: ids of earlier topics of the same name.
        read_to: next offset by partition.
        losses: losses that processors recorded within a day.
        kept: totals of dead letters and anomalies.
        held_up: duties that currently fail.
        skipped: data that was skipped within a day.
        renames: by table, columns that still have a former name: the former names and the names used here.
        made: topics that the operator created for it.
    """

    owner: Owner | None = None
    shapes: Mapping[tuple[str, int], str] = field(default_factory=dict)
    columns: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    generation: int = 0
    accepted: Mapping[str, Any] | None = None
    closed_until: Mapping[tuple[str, int], int | None] = field(default_factory=dict)
    partitions: int = 0
    feeds: Mapping[tuple[str, int], Feeds] = field(default_factory=dict)
    read_from: str = ""
    read_before: frozenset[str] = frozenset()
    read_to: Mapping[int, int] = field(default_factory=dict)
    readers: Mapping[tuple[str, int], str] = field(default_factory=dict)
    replays: Mapping[str, LiveReplay] = field(default_factory=dict)
    losses: tuple[Loss, ...] = ()
    kept: tuple[Kept, ...] = ()
    held_up: tuple[Failing, ...] = ()
    skipped: tuple[Failing, ...] = ()
    renames: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    missing_positions: tuple[int, ...] = ()
    emptied: frozenset[tuple[str, int]] = frozenset()
    made: frozenset[str] = frozenset()


@dataclass(frozen=True)
class LiveFacts:
    """The live facts that a plan depends on; unknown by default.

    Attributes:
        topics: the existing topics, by name.
        brokers: number of brokers; None: unknown.
        schema: the pipeline's schema; None: it does not exist, or is unknown.
        replicas: number of processors that scaling has decided on; None: there is no decision.
    """

    topics: Mapping[str, LiveTopic] = field(default_factory=dict)
    brokers: int | None = None
    schema: LiveSchema | None = None
    replicas: int | None = None
