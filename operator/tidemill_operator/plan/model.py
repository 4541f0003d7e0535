"""What `plan` yields: neutral descriptions of topics, Postgres objects and workloads. Frozen, no I/O, no clock."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Component = Literal["processor", "ingest", "api"]


@dataclass(frozen=True)
class Topic:
    """A Kafka topic as it should be. Unmanaged: it must exist and is never altered."""

    name: str
    partitions: int
    replication_factor: int
    config: Mapping[str, str] = field(default_factory=dict)
    managed: bool = True


@dataclass(frozen=True)
class Column:
    """A column; `definition` is its SQL type with constraints and default."""

    name: str
    definition: str


@dataclass(frozen=True)
class Table:
    """A table as it should be. Columns may be added later, never dropped or altered.

    Attributes:
        constraints: table constraints, verbatim SQL, made with the table.
        partition_by: verbatim, e.g. `RANGE ("window_start")`; None: not partitioned.
        storage: verbatim storage parameters, e.g. `fillfactor = 70`.
        indexes: (name, verbatim `ON …` definition after the table's name, e.g. `("published") WHERE NOT published`).
        writer / reader: privileges granted to the two roles, e.g. `SELECT, INSERT, UPDATE`; empty: none.
    """

    name: str
    columns: tuple[Column, ...]
    constraints: tuple[str, ...] = ()
    partition_by: str | None = None
    storage: str = ""
    indexes: tuple[tuple[str, str], ...] = ()
    writer: str = ""
    reader: str = "SELECT"


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
class Schema:
    """A pipeline's Postgres schema as it should be.

    Attributes:
        partitions: rows that `_offsets` must have (made before Kafka's partitions grow).
        functions: (name, `CREATE OR REPLACE FUNCTION …` text with the schema quoted inside); owner-owned.
        generation: what `_generation` must hold at least.
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
    labels: Mapping[str, str] = field(default_factory=dict)


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
        ports: name → wanted port (0: any).
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
    readiness: Probe = Probe("/readyz", "http")
    liveness: Probe = Probe("/livez", "http", 10)
    resources: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """Everything that one pipeline needs."""

    namespace: str
    name: str
    config: str
    topics: tuple[Topic, ...]
    schema: Schema
    workloads: tuple[Workload, ...]
    reclaim: Literal["Retain", "Delete"]
