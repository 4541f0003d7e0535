"""The observed topics and schemas that are compared with a plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tidemill_contract.functions.fill_history import FillHistory
from tidemill_contract.resource.spec import ScaledComponent
from tidemill_contract.tables.quotas import QuotaUsage


@dataclass(frozen=True)
class Owner:
    """The pipeline that owns an object.

    Attributes:
        cluster: id of the Kubernetes cluster. Several clusters can share a Postgres server.
    """

    namespace: str
    name: str
    uid: str
    cluster: str


@dataclass(frozen=True)
class LiveTopic:
    """A live topic. The `id` of a topic changes if the topic is created again."""

    partitions: int
    replication_factor: int
    id: str = ""
    replica_brokers: frozenset[int] = frozenset()


@dataclass(frozen=True)
class LiveReplay:
    """The live state of a replay.

    Attributes:
        handed_over: number of partitions that the replay has finished and handed over to the live processors.
    """

    switched: bool = False
    handed_over: int = 0
    processed: int = 0
    left: int = 0
    losses: tuple[Loss, ...] = ()


@dataclass(frozen=True)
class Loss:
    """A range of offsets that Kafka lost. `reason` is topic_recreated, expired or truncated."""

    reason: str
    partition: int
    epoch: int
    first: int
    end: int | None


@dataclass(frozen=True)
class TaskFailure:
    """A failure of a processor's task (such as `publish` or `scan`), or data that the task skipped."""

    aggregation: str
    duty: str
    reason: str
    window: str = ""
    group: str = ""
    metrics: tuple[str, ...] = ()
    more: bool = False


@dataclass(frozen=True)
class Slot:
    """A partition that a pipeline with several topics reads. `number` is the partition's number in the pipeline."""

    number: int
    topic: str
    partition: int
    reading: bool = True
    added: bool = False
    topic_id: str = ""
    next_offset: int | None = None


@dataclass(frozen=True)
class LiveSchema:
    """The live state of a pipeline's schema. A version of an aggregation has the key (name, version).

    Attributes:
        accepted: the last accepted spec, as the user wrote it.
        topic_id: Kafka's id of the topic that the processors read.
        next_offsets: next offset to read, by partition.
        renames: for each table, the current names of renamed columns, by former name.
    """

    owner: Owner | None = None
    shapes: Mapping[tuple[str, int], str] = field(default_factory=dict)
    columns: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    generation: int = 0
    accepted: Mapping[str, Any] | None = None
    closed_until: Mapping[tuple[str, int], int | None] = field(default_factory=dict)
    partitions: int = 0
    fill_histories: Mapping[tuple[str, int], FillHistory] = field(default_factory=dict)
    topic_id: str = ""
    former_topic_ids: frozenset[str] = frozenset()
    next_offsets: Mapping[int, int] = field(default_factory=dict)
    readers: Mapping[tuple[str, int], str] = field(default_factory=dict)
    replays: Mapping[str, LiveReplay] = field(default_factory=dict)
    losses: tuple[Loss, ...] = ()
    stored_totals: tuple[QuotaUsage, ...] = ()
    held_up: tuple[TaskFailure, ...] = ()
    skipped: tuple[TaskFailure, ...] = ()
    renames: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    missing_positions: tuple[int, ...] = ()
    emptied: frozenset[tuple[str, int]] = frozenset()
    created_topics: frozenset[str] = frozenset()
    slots: tuple[Slot, ...] = ()


@dataclass(frozen=True)
class LiveFacts:
    """The live state on which a plan depends. An unknown fact has the default value.

    Attributes:
        confirmed_missing: topics that every broker reports as missing.
    """

    topics: Mapping[str, LiveTopic] = field(default_factory=dict)
    brokers: int | None = None
    schema: LiveSchema | None = None
    replicas: Mapping[ScaledComponent, int] = field(default_factory=dict)
    pattern_candidates: tuple[str, ...] = ()
    confirmed_missing: frozenset[str] = frozenset()
