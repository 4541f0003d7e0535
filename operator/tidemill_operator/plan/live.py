"""The observed topics and schemas that are compared with a plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tidemill_contract.functions.feeds import Feeds
from tidemill_contract.resource.spec import ScaledComponent
from tidemill_contract.tables.kept import Kept


@dataclass(frozen=True)
class Owner:
    """The pipeline that owns an object. `cluster` distinguishes clusters that share a Postgres."""

    namespace: str
    name: str
    uid: str
    cluster: str


@dataclass(frozen=True)
class LiveTopic:
    """A live topic.

    Attributes:
        replication_factor: the lowest number of replicas of any partition.
        id: Kafka's topic id, which changes if the topic is created again.
        holders: the brokers that have replicas or will get some.
    """

    partitions: int
    replication_factor: int
    id: str = ""
    holders: frozenset[int] = frozenset()


@dataclass(frozen=True)
class LiveReplay:
    """The live state of a replay.

    Attributes:
        switched: whether the versions of the replay are in force.
        handed: the number of partitions whose events live processors count for its versions.
        left: the number of events that the replay still has to count.
    """

    switched: bool = False
    handed: int = 0
    processed: int = 0
    left: int = 0
    losses: tuple[Loss, ...] = ()


@dataclass(frozen=True)
class Loss:
    """A range of offsets of a partition that Kafka lost.

    Attributes:
        reason: the kind of loss: topic_recreated, expired or truncated.
        end: the offset after the last lost offset, or None if unknown.
    """

    reason: str
    partition: int
    epoch: int
    first: int
    end: int | None


@dataclass(frozen=True)
class Failing:
    """A duty of an aggregation that fails, or data that a duty skipped.

    Attributes:
        aggregation: the aggregation's name, or empty for the whole pipeline.
        duty: the name of the duty in processors: publish, scan, …
        window: the skipped window, or empty.
        more: whether more of the same kind was skipped within a day.
    """

    aggregation: str
    duty: str
    reason: str
    window: str = ""
    group: str = ""
    metrics: tuple[str, ...] = ()
    more: bool = False


@dataclass(frozen=True)
class Slot:
    """The number of one partition of one topic in a list of topics.

    Attributes:
        reading: whether the partition is read.
        added: whether the slot was added after the pipeline had started to run.
        topic_id: Kafka's id of the topic that was read, or empty.
    """

    slot: int
    topic: str
    partition: int
    reading: bool = True
    added: bool = False
    topic_id: str = ""
    next_offset: int | None = None


@dataclass(frozen=True)
class LiveSchema:
    """A pipeline's live schema.

    Attributes:
        shapes: the shape of every aggregation version, by (name, version).
        accepted: the last accepted spec, as the user wrote it, or None.
        closed_until: the end of the last closed window in epoch milliseconds, by (name, version), or None.
        emptied: the versions, as (name, version), whose tables are empty although batches were merged into them.
        read_from: Kafka's id of the topic that was read, or empty.
        read_to: the next offset by partition.
        renames: the columns that still have a former name, by table: {former name: current name}.
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
    slots: tuple[Slot, ...] = ()


@dataclass(frozen=True)
class LiveFacts:
    """The live facts that a plan depends on. By default, they are unknown.

    Attributes:
        brokers: the number of brokers, or None if unknown.
        schema: the pipeline's schema, or None if it does not exist or is unknown.
        found: the names of the existing topics that the pipeline's pattern may match.
    """

    topics: Mapping[str, LiveTopic] = field(default_factory=dict)
    brokers: int | None = None
    schema: LiveSchema | None = None
    replicas: Mapping[ScaledComponent, int] = field(default_factory=dict)
    found: tuple[str, ...] = ()
