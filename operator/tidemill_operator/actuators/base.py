"""What reconcile asks of the world: one protocol for topics, schema, secrets and workloads each.

Every `ensure` observes first and writes only what differs: called twice, the second call writes nothing and its
outcomes say `changed=0`. All calls are synchronous and end by a hard timeout. Servers that do not answer raise
TidemillError(UNREACHABLE); what concerns one thing only is an outcome.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Literal, Protocol

from tidemill_contract.runtime import PostgresCredentials
from tidemill_operator.outcome import Outcome
from tidemill_operator.plan.kafka.replication import Spread
from tidemill_operator.plan.model import LiveSchema, LiveTopic, Owner, Schema, Topic, Workload

Reclaim = Literal["Retain", "Delete"]
Exists = Callable[[str, str], bool]
"""Whether there is a pipeline of a namespace and a name."""


@dataclass(frozen=True)
class PipelineSecrets:
    """A pipeline's logins.

    Attributes:
        writer, reader: in force.
        changed: counts the secrets that had to be written.
        following: staged: to be made, and then put in force.
        retire_at: when those that were in force before may be retired at the earliest; None: they have been.
        rotated: what asked for the last rotation that was switched.
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
        """How many brokers there are."""
        ...

    def observe(self, names: Sequence[str]) -> Mapping[str, LiveTopic]:
        """Those of the topics that exist."""
        ...

    def ensure(self, topics: Sequence[Topic], *, spread: Spread | None = None) -> list[Outcome]:
        """Make the topics so, replicas spread anew if asked for; one outcome (component topics) each."""
        ...

    def release(self, topics: Sequence[Topic], reclaim: Reclaim) -> list[Outcome]:
        """Let go of a removed pipeline's topics; unmanaged ones are never deleted."""
        ...


class Schemas(Protocol):
    """Postgres schemas."""

    def exclusive(self, schema: str) -> AbstractContextManager[Callable[[], None]]:
        """Keep other operators off the pipeline of a schema, its topics included.

        Gives what is to be called before each thing that is done: it raises NotOurTurn if it is our turn no more.
        """
        ...

    def observe(self, schema: str) -> LiveSchema | None:
        """What is there of a schema; None: nothing."""
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
        """Make schema, roles, tables, grants and rows so.

        `adopt` takes over what is somebody else's; a topic only of a pipeline that `exists` does not know any more.
        """
        ...

    def release(self, schema: Schema, *, owner: Owner, reclaim: Reclaim) -> list[Outcome]:
        """Let go of a removed pipeline's schema and roles."""
        ...

    def expire(self, schema: Schema) -> list[Outcome]:
        """Drop window partitions that are past their retention, a few at a time."""
        ...


class Secrets(Protocol):
    """Passwords and API keys."""

    def ensure(self, namespace: str, pipeline: str, *, writer: str, reader: str, rotate: str = "") -> PipelineSecrets:
        """The logins of the two roles; API keys likewise. A rotation that `rotate` asks for anew is staged."""
        ...

    def switch(self, namespace: str, pipeline: str, *, now: dt.datetime) -> PipelineSecrets:
        """Put the staged logins in force; the former may log in until they are retired."""
        ...

    def retire(self, namespace: str, pipeline: str) -> PipelineSecrets:
        """Let go of the logins that were in force before."""
        ...

    def remove(self, namespace: str, pipeline: str) -> None:
        """Forget a pipeline's secrets."""
        ...


class Runtime(Protocol):
    """Whatever runs workloads: child processes here, Deployments in a cluster."""

    def ensure(self, workloads: Sequence[Workload]) -> list[Outcome]:
        """Make a pipeline's workloads so, and end those of the pipeline that are not listed.

        One outcome a workload (component processors, ingest or api): Done when ready, Waiting while not. Shared
        workloads (pipeline None) carry only this pipeline's config; the runtime adds it to the others'.
        """
        ...

    def observe(self, workloads: Sequence[Workload]) -> list[Outcome]:
        """How far those of the workloads are that run, as `ensure` would tell; nothing is changed."""
        ...

    def remove(self, namespace: str, pipeline: str) -> None:
        """End a pipeline's workloads and take its config from the shared ones."""
        ...

    def endpoints(self, namespace: str, pipeline: str) -> Mapping[str, str]:
        """Base URLs by component: `ingest`, `api`."""
        ...

    def exists(self, namespace: str, pipeline: str) -> bool:
        """Whether a pipeline is there, whatever became of it; where that cannot be told, it is."""
        ...


@dataclass(frozen=True)
class Actuators:
    """All of them."""

    kafka: Topics
    postgres: Schemas
    secrets: Secrets
    runtime: Runtime
