"""The protocols through which reconcile changes topics, schemas, secrets and workloads.

Every `ensure` observes first and writes only what differs. A second call writes nothing, and its outcomes say
`changed=0`. All calls are synchronous and have a hard timeout. A server that does not answer raises
TidemillError(UNREACHABLE). If only one object fails, its outcome reports the error.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Literal, Protocol

from tidemill_contract.resource.kinds.kafka import KafkaSpec
from tidemill_contract.runtime import PostgresCredentials
from tidemill_operator.errors import Reason, TidemillError
from tidemill_operator.outcome import Outcome
from tidemill_operator.plan.kafka.replication import Spread
from tidemill_operator.plan.live import LiveSchema, LiveTopic, Owner
from tidemill_operator.plan.model import Connector, Schema, Topic, Workload

Reclaim = Literal["Retain", "Delete"]
Exists = Callable[[str, str], bool]
"""Whether the pipeline with this namespace and name exists."""


@dataclass(frozen=True)
class PipelineSecrets:
    """A pipeline's logins.

    Attributes:
        writer, reader: the logins that the workloads use now.
        changed: number of secrets that were written.
        following: the staged logins. Staged logins are created in Postgres first, and activated by `switch`.
        retire_at: earliest time to retire the former logins, or None if they are already retired.
        rotated: the value of `rotate` that requested the active logins.
    """

    writer: PostgresCredentials = field(repr=False)
    reader: PostgresCredentials = field(repr=False)
    changed: int = 0
    following: tuple[PostgresCredentials, ...] = field(default=(), repr=False)
    retire_at: dt.datetime | None = None
    rotated: str = ""


class Topics(Protocol):
    """Kafka topics."""

    def brokers(self) -> int:
        """Return the number of brokers."""
        ...

    def names(self) -> Sequence[str]:
        """Return the names of all topics."""
        ...

    def observe(self, names: Sequence[str]) -> Mapping[str, LiveTopic]:
        """Return the topics that exist, by name."""
        ...

    def ensure(self, topics: Sequence[Topic], *, spread: Spread | None = None) -> list[Outcome]:
        """Make the topics match the plan, and spread their replicas if `spread` is given.

        Returns one outcome (component topics) for each topic.
        """
        ...

    def release(self, topics: Sequence[Topic], reclaim: Reclaim) -> list[Outcome]:
        """Delete or keep the topics of a removed pipeline, as `reclaim` says. Unmanaged topics are never deleted."""
        ...


class OtherClusters(Protocol):
    """The Kafka clusters of sources, other than the platform's own Kafka. Nothing is written to them."""

    def names(self, namespace: str, kafka: KafkaSpec) -> Sequence[str]:
        """Return the names of all topics that the login may describe."""
        ...

    def topic(self, namespace: str, kafka: KafkaSpec, name: str) -> LiveTopic | None:
        """Return a topic, or None if it does not exist or the login may not describe it."""
        ...


class NoClusters:
    """Used where no logins of other clusters are known. Every call fails."""

    def names(self, namespace: str, kafka: KafkaSpec) -> Sequence[str]:
        """Raise an error."""
        message = f"topics are at {kafka.bootstrap_servers}, and no login of other Kafka clusters is known here"
        raise TidemillError(Reason.UNREACHABLE, message)

    def topic(self, namespace: str, kafka: KafkaSpec, name: str) -> LiveTopic | None:
        """Raise an error."""
        message = f"topic {name} is at {kafka.bootstrap_servers}, and no login of other Kafka clusters is known here"
        raise TidemillError(Reason.UNREACHABLE, message)


class Schemas(Protocol):
    """Postgres schemas."""

    def exclusive(self, schema: str) -> AbstractContextManager[Callable[[], None]]:
        """Lock a schema's pipeline and its topics against other operators.

        Yields a check to call before each action. The check raises NotOurTurn once the lock is lost.
        """
        ...

    def observe(self, schema: str) -> LiveSchema | None:
        """Return the live schema, or None if it does not exist."""
        ...

    def ensure(
        self,
        schema: Schema,
        *,
        owner: Owner,
        secrets: PipelineSecrets,
        adopt: bool = False,
        exists: Exists | None = None,
    ) -> list[Outcome]:
        """Reconcile schema, roles, tables, grants and rows.

        `adopt` takes over objects that have another owner. A topic is taken over only if `exists` says that the
        pipeline that owns it is gone.
        """
        ...

    def release(self, schema: Schema, *, owner: Owner, reclaim: Reclaim) -> list[Outcome]:
        """Drop or keep the schema and roles of a removed pipeline, as `reclaim` says."""
        ...

    def expire(self, schema: Schema) -> list[Outcome]:
        """Drop window partitions that are past their retention, a few per call."""
        ...


class Secrets(Protocol):
    """Passwords and API keys."""

    def ensure(self, namespace: str, pipeline: str, *, writer: str, reader: str, rotate: str = "") -> PipelineSecrets:
        """Make sure that both logins and the API keys exist. A new value of `rotate` stages a rotation."""
        ...

    def switch(self, namespace: str, pipeline: str, *, now: dt.datetime) -> PipelineSecrets:
        """Activate the staged logins. The former logins keep working until they are retired."""
        ...

    def retire(self, namespace: str, pipeline: str) -> PipelineSecrets:
        """Retire the former logins."""
        ...

    def remove(self, namespace: str, pipeline: str) -> None:
        """Remove a pipeline's secrets."""
        ...


class Runtime(Protocol):
    """Runs workloads: as child processes on a laptop, as Deployments in a cluster."""

    def ensure(self, workloads: Sequence[Workload]) -> list[Outcome]:
        """Make a pipeline's workloads match the plan, and end its workloads that are not listed.

        In the plan, a shared workload (one whose `pipeline` is None) has only this pipeline's config. The runtime adds
        it to the configs of the other pipelines.
        """
        ...

    def observe(self, workloads: Sequence[Workload]) -> list[Outcome]:
        """Return the outcomes of the running workloads, in the same form as `ensure`. Changes nothing."""
        ...

    def remove(self, namespace: str, pipeline: str) -> None:
        """End a pipeline's workloads, and remove its config from shared workloads."""
        ...

    def endpoints(self, namespace: str, pipeline: str) -> Mapping[str, str]:
        """Base URLs by component: `ingest`, `api`."""
        ...

    def exists(self, namespace: str, pipeline: str) -> bool:
        """Return whether a pipeline exists, in any state. Return True if that is unknown."""
        ...


class Connectors(Protocol):
    """Connectors of Kafka Connect. A connector that the pipeline does not own is never changed."""

    def ensure(self, connectors: Sequence[Connector], *, owner: Owner, adopt: bool = False) -> list[Outcome]:
        """Make a pipeline's connectors match the plan, and delete its connectors that are not listed.

        Returns one outcome for each listed connector, and for each deleted one. `adopt` takes over connectors that
        have another owner.
        """
        ...

    def observe(self, connectors: Sequence[Connector]) -> list[Outcome]:
        """Return the outcomes of the live connectors, in the same form as `ensure`. Changes nothing."""
        ...

    def remove(self, *, owner: Owner) -> list[Outcome]:
        """Delete all connectors of a pipeline."""
        ...


@dataclass(frozen=True)
class Actuators:
    """The actuators of one pass. `connect` is None if the platform has no Kafka Connect."""

    kafka: Topics
    postgres: Schemas
    secrets: Secrets
    runtime: Runtime
    clusters: OtherClusters = field(default_factory=NoClusters)
    connect: Connectors | None = None
