"""The protocols of the actuators, which change topics, schemas, secrets and workloads.

The methods named `ensure` write only what differs from the plan, so a second call changes nothing. If a server does not
answer, a method raises TidemillError with the reason UNREACHABLE. If only one object fails, the method returns a failed
`Outcome` for that object.
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
"""A check for the existence of a pipeline, by namespace and name."""


@dataclass(frozen=True)
class PipelineSecrets:
    """The database logins of a pipeline.

    Attributes:
        staged: new logins that the rotation has not activated yet.
        retire_at: earliest time to disable the replaced logins, or None if they are already disabled.
    """

    writer: PostgresCredentials = field(repr=False)
    reader: PostgresCredentials = field(repr=False)
    changed: int = 0
    staged: tuple[PostgresCredentials, ...] = field(default=(), repr=False)
    retire_at: dt.datetime | None = None
    completed_rotation: str = ""


class Topics(Protocol):
    """The actuator for Kafka topics."""

    def broker_count(self) -> int:
        """Return the number of brokers."""
        ...

    def names(self) -> Sequence[str]:
        """List all topic names."""
        ...

    def observe(self, names: Sequence[str]) -> Mapping[str, LiveTopic]:
        """Return the existing topics."""
        ...

    def find_missing(self, names: Sequence[str]) -> frozenset[str]:
        """Return the topics that every broker reports as missing."""
        ...

    def ensure(self, topics: Sequence[Topic], *, spread: Spread | None = None) -> list[Outcome]:
        """Make the topics match the plan, and return one outcome for each topic."""
        ...

    def release(self, topics: Sequence[Topic], reclaim: Reclaim) -> list[Outcome]:
        """Delete or keep the managed topics of a removed pipeline, as `reclaim` says."""
        ...


class OtherClusters(Protocol):
    """Read-only access to the Kafka clusters that users name in `spec.source.kafka`."""

    def names(self, namespace: str, kafka: KafkaSpec) -> Sequence[str]:
        """Return the names of all topics that the login may describe."""
        ...

    def topic(self, namespace: str, kafka: KafkaSpec, name: str) -> LiveTopic | None:
        """Return a topic, or None if it does not exist or the login may not describe it."""
        ...

    def find_missing(self, namespace: str, kafka: KafkaSpec, names: Sequence[str]) -> frozenset[str]:
        """Return the topics that every broker reports as missing."""
        ...


class NoClusters:
    """A placeholder for platforms without access to other Kafka clusters."""

    def names(self, namespace: str, kafka: KafkaSpec) -> Sequence[str]:
        """Raise an error."""
        message = f"topics at {kafka.bootstrap_servers} cannot be listed: no login for other Kafka clusters is known"
        raise TidemillError(Reason.UNREACHABLE, message)

    def topic(self, namespace: str, kafka: KafkaSpec, name: str) -> LiveTopic | None:
        """Raise an error."""
        message = (
            f"topic {name} at {kafka.bootstrap_servers} cannot be read: no login for other Kafka clusters is known"
        )
        raise TidemillError(Reason.UNREACHABLE, message)

    def find_missing(self, namespace: str, kafka: KafkaSpec, names: Sequence[str]) -> frozenset[str]:
        """Return no topic."""
        return frozenset()


class Schemas(Protocol):
    """The actuator for Postgres schemas."""

    def lock(self, schema: str) -> AbstractContextManager[Callable[[], None]]:
        """Lock a schema and its topics against other operators.

        Yields a function that checks the lock, and raises LockNotHeldError if another operator took the lock.
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

        Args:
            schema: the desired schema.
            owner: the pipeline that owns the schema.
            secrets: the logins.
            adopt: whether to take over objects of another owner.
            exists: returns whether a pipeline exists. `adopt` never takes over the topics of an existing pipeline.
        """
        ...

    def release(self, schema: Schema, *, owner: Owner, reclaim: Reclaim) -> list[Outcome]:
        """Drop or keep the schema and roles of a removed pipeline, as `reclaim` says."""
        ...

    def expire(self, schema: Schema) -> list[Outcome]:
        """Drop window partitions that are past their retention, a few per call."""
        ...


class Secrets(Protocol):
    """The actuator for passwords and API keys."""

    def ensure(self, namespace: str, pipeline: str, *, writer: str, reader: str, rotate: str = "") -> PipelineSecrets:
        """Create missing logins and API keys. A new value of `rotate` starts a rotation of the logins."""
        ...

    def switch(self, namespace: str, pipeline: str, *, now: dt.datetime) -> PipelineSecrets:
        """Activate the staged logins. The replaced logins keep working until `retire` is called."""
        ...

    def retire(self, namespace: str, pipeline: str) -> PipelineSecrets:
        """Disable the replaced logins."""
        ...

    def remove(self, namespace: str, pipeline: str) -> None:
        """Remove a pipeline's secrets."""
        ...


class Runtime(Protocol):
    """The actuator for workloads, which are processes or Deployments."""

    def ensure(self, workloads: Sequence[Workload]) -> list[Outcome]:
        """Create, update or remove a pipeline's workloads, as the plan requires."""
        ...

    def observe(self, workloads: Sequence[Workload]) -> list[Outcome]:
        """Return the state of each running workload, without changing the workloads."""
        ...

    def remove(self, namespace: str, pipeline: str) -> None:
        """Remove a pipeline's workloads, and its config from shared workloads."""
        ...

    def endpoints(self, namespace: str, pipeline: str) -> Mapping[str, str]:
        """Return the base URLs of `ingest` and `api`."""
        ...

    def exists(self, namespace: str, pipeline: str) -> bool:
        """Return True if a pipeline exists or its existence is unknown."""
        ...


class Connectors(Protocol):
    """The actuator for the connectors that a pipeline owns."""

    def ensure(self, connectors: Sequence[Connector], *, owner: Owner, adopt: bool = False) -> list[Outcome]:
        """Create, update or delete a pipeline's connectors, as the plan requires.

        With `adopt`, connectors of another owner are taken over.
        """
        ...

    def observe(self, connectors: Sequence[Connector]) -> list[Outcome]:
        """Return the state of each existing connector, without changing the connectors."""
        ...

    def remove(self, *, owner: Owner) -> list[Outcome]:
        """Delete all connectors of a pipeline."""
        ...


@dataclass(frozen=True)
class Actuators:
    """The actuators of a reconcile pass. `connect` is None on platforms without Kafka Connect."""

    kafka: Topics
    postgres: Schemas
    secrets: Secrets
    runtime: Runtime
    clusters: OtherClusters = field(default_factory=NoClusters)
    connect: Connectors | None = None
