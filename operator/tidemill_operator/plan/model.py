"""What `plan` yields: neutral descriptions of topics, Postgres objects and workloads. Frozen, no I/O, no clock."""

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
    """A Kafka topic as it should be.

    Attributes:
        managed: otherwise it must exist and is never altered.
        replicated: whether the spec asks for the replication factor; otherwise a topic that exists keeps its own.
        lost: what went with the topic that was here: it is not made anew unasked. Empty: none was, or it is allowed.
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
    """How long and how much (bytes) the rows of a system table are kept."""

    table: str
    retention_ms: int
    quota: int


@dataclass(frozen=True)
class Schema:
    """A pipeline's Postgres schema as it should be.

    Attributes:
        partitions: rows that `_offsets` must have (made before Kafka's partitions grow).
        functions: (name, `CREATE OR REPLACE FUNCTION …` text with the schema quoted inside); owner-owned.
        generation: what `_generation` must hold: of the last spec that told processors something new.
        accepted: the spec as it was written, as stable JSON; kept beside the generation.
        events_retention_ms: how long kept events stay; None: none are kept.
        kept: bounds of system tables whose rows go again.
        source: the topic of its events.
        managed: whether that one is made and altered for it, and so nobody else's.
        outputs: the topics that it writes to.
        made: topics that are noted as made for it.
        replay: the reader that fills versions from the topic; empty: none does.
        switched: the reader whose versions are in force from now on; empty: none's are.
        abandoned: readers of replays that are wanted no more; what they filled goes.
        lost: what of it somebody else took away: it is not made anew unasked. Empty: nothing, or it is allowed.
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


@dataclass(frozen=True)
class Probe:
    """An HTTP check of a workload."""

    path: str
    port: str
    period_seconds: int = 5


@dataclass(frozen=True)
class Workload:
    """Processes to run, described alike for both runtimes.

    Attributes:
        name: unique in the namespace, e.g. `flights-processor`, `tidemill-ingest`.
        pipeline: the pipeline that owns it; None: shared by all pipelines of the namespace.
        module: Python module to run (`python -m …`).
        environment: plain settings (TIDEMILL_…), the same in both runtimes; the runtime adds addresses and paths.
        configs: pipeline config files this workload reads, file name → text.
        secrets: pipelines whose secret folders it reads, with the file names it may see.
        ports: name → wanted port (0: any): `http` is for clients, `status` for probes and figures.
        scaled_elsewhere: whether somebody else decides how many replicas run; where nobody can, `replicas` counts.
        scaled: whether it is scaled by lag, which remembers its decisions.
        revision: of what its processes read once: another one needs new processes. Empty: they see changes themselves.
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


@dataclass(frozen=True)
class Replay:
    """Versions that are filled from the topic beside live traffic.

    Attributes:
        reader: its name in `_readers`, which its consumer group bears too.
        versions: by aggregation.
        start_from: earliest, or a time in RFC 3339.
        rate: events a second at most; 0: as fast as it can.
        handed: partitions whose events live processors count for these versions by now.
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
        replay: what is being filled; None: nothing.
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
    """The resource that something belongs to; `cluster` tells apart clusters that share a Postgres."""

    namespace: str
    name: str
    uid: str
    cluster: str


@dataclass(frozen=True)
class LiveTopic:
    """A topic as it is.

    Attributes:
        replication_factor: of the partition that has the fewest replicas.
        id: Kafka's own, another one after the topic was made anew.
        holders: brokers that hold its replicas, or are about to, whether they answer or not.
    """

    partitions: int
    replication_factor: int
    id: str = ""
    holders: frozenset[int] = frozenset()


@dataclass(frozen=True)
class LiveReplay:
    """A replay as it is.

    Attributes:
        switched: whether its versions are in force.
        handed: partitions whose events live processors count for its versions.
        processed: events that it has counted.
        left: events that it has still to count.
        losses: what the topic held no longer when it was to be read.
    """

    switched: bool = False
    handed: int = 0
    processed: int = 0
    left: int = 0
    losses: tuple[Loss, ...] = ()


@dataclass(frozen=True)
class Loss:
    """Offsets of a partition that Kafka had no longer when they were to be read, or has lost after that.

    Attributes:
        reason: as processors note it: topic_recreated, expired or truncated.
        epoch: of the positions then.
        first, end: offsets, the end excluded; None: nobody knows.
    """

    reason: str
    partition: int
    epoch: int
    first: int
    end: int | None


@dataclass(frozen=True)
class Failing:
    """Something that processors cannot do for an aggregation, or passed over, the first of its kind within a day.

    Attributes:
        aggregation: its name; empty: of the whole pipeline.
        duty: as processors name it: publish, scan, …
        reason: what they were told.
        window: of what was passed over the window, if it is of one; `group` its group, `metrics` what is missing.
        more: whether more of the kind was passed over.
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
    """A pipeline's schema as it is.

    Attributes:
        owner: who it says it belongs to; None: it does not say.
        shapes: of every aggregation version, by (name, version).
        feeds: which columns their tables are fed with, likewise.
        readers: who fills them, likewise.
        replays: by reader.
        columns: SQL types as Postgres spells them, by table and column.
        generation: what `_generation` holds.
        accepted: the resource's spec that was last accepted, as it was written; None: none yet.
        closed_until: epoch milliseconds by (name, version); None: nothing is closed.
        partitions: source partitions whose positions are kept.
        missing_positions: partitions whose positions were kept and are not any more.
        emptied: versions, by (name, version), that batches were merged into and whose tables hold nothing.
        read_from: Kafka's id of the topic that was read; empty: none was.
        read_before: ids of topics of the name that were read before that one.
        read_to: next offset by partition.
        losses: what processors noted last, if that was within a day.
        kept: what is kept of dead letters and anomalies.
        held_up: what they try in vain now.
        skipped: what they passed over within a day.
        renames: by table, columns that have another name still than they are told with here: their names and these.
        made: topics that the operator made for it.
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
    """What a plan has to know of the world; all unknown by default.

    Attributes:
        topics: those that exist, by name.
        brokers: how many there are; None: unknown.
        schema: the pipeline's schema; None: there is none, or it is unknown.
        replicas: processors that scaling has decided on; None: it has not yet.
    """

    topics: Mapping[str, LiveTopic] = field(default_factory=dict)
    brokers: int | None = None
    schema: LiveSchema | None = None
    replicas: int | None = None
