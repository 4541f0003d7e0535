"""An in-memory platform for tests, without Kafka, Postgres or a cluster.

`reconcile(document, platform=Platform(), actuators=MemoryWorld().actuators, previous=None, now=now)` runs a whole pass.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from tidemill_contract.resource.kinds.kafka import KafkaSpec
from tidemill_operator.actuators import credentials
from tidemill_operator.actuators.base import Actuators, Connectors, Exists, PipelineSecrets, Reclaim
from tidemill_operator.actuators.memory import MemoryActuator
from tidemill_operator.errors import LockNotHeldError
from tidemill_operator.outcome import COMPONENT_OF_WORKLOAD, Component, Outcome, done, failed, skipped, waiting
from tidemill_operator.plan.kafka.claims import Claim, find_conflicts
from tidemill_operator.plan.kafka.replication import Spread
from tidemill_operator.plan.live import LiveReplay, LiveSchema, LiveTopic, Owner
from tidemill_operator.plan.model import Schema, Topic, Workload
from tidemill_operator.plan.postgres.damage import damage_error
from tidemill_operator.plan.postgres.migration import with_types_of
from tidemill_operator.plan.postgres.schema import column_type
from tidemill_operator.plan.refusals import (
    column_type_errors,
    deleted_topic_error,
    missing_topic_error,
    ownership_errors,
)


class MemoryTopics(MemoryActuator):
    """An in-memory actuator for topics.

    Attributes:
        moving: what `ensure` waits for, or empty if it does not wait.
        silent_broker: whether to simulate a broker that does not answer. `find_missing` then returns an empty set.
    """

    def __init__(self) -> None:
        super().__init__()
        self.topics: dict[str, LiveTopic] = {}
        self.configs: dict[str, dict[str, str]] = {}
        self.nodes = 1
        self.created_count = 0
        self.spreads: list[Spread | None] = []
        self.moving = ""
        self.silent_broker = False

    def put(self, name: str, partitions: int, replication_factor: int = 1, **config: str) -> None:
        """Create or replace a topic."""
        self.created_count += 1
        self.topics[name] = LiveTopic(partitions, replication_factor, f"id-{self.created_count}")
        self.configs[name] = dict(config)

    def broker_count(self) -> int:
        """Return `nodes`."""
        self._record_call("broker_count")
        return self.nodes

    def names(self) -> list[str]:
        """List all topic names."""
        self._record_call("names")
        return list(self.topics)

    def observe(self, names: Sequence[str]) -> Mapping[str, LiveTopic]:
        """Return the existing topics."""
        self._record_call("observe")
        return {name: self.topics[name] for name in names if name in self.topics}

    def find_missing(self, names: Sequence[str]) -> frozenset[str]:
        """Return the topics that do not exist, or an empty set if `silent_broker` is true."""
        self._record_call("find_missing")
        return frozenset() if self.silent_broker else frozenset(names) - self.topics.keys()

    def ensure(self, topics: Sequence[Topic], *, spread: Spread | None = None) -> list[Outcome]:
        """Create and change topics."""
        self._record_call("ensure")
        self.spreads.append(spread)
        if self.moving:
            return [waiting(Component.TOPICS, topic.name, self.moving) for topic in topics]
        return [self._ensure(topic) for topic in topics]

    def _ensure(self, topic: Topic) -> Outcome:
        changed, live = 0, self.topics.get(topic.name)
        if live is None and not topic.managed:
            return failed(Component.TOPICS, topic.name, missing_topic_error(topic))
        if live is None and topic.lost:
            return failed(Component.TOPICS, topic.name, deleted_topic_error(topic))
        if live is None:
            self.put(topic.name, topic.partitions, topic.replication_factor, **topic.config)
            changed = self._record_write(f"create {topic.name}")
        elif topic.managed:
            if live.partitions < topic.partitions:
                self.topics[topic.name] = replace(live, partitions=topic.partitions)
                changed += self._record_write(f"grow {topic.name}")
            for key, value in topic.config.items():
                if self.configs[topic.name].get(key) != value:
                    self.configs[topic.name][key] = value
                    changed += self._record_write(f"set {key} of {topic.name}")
        topic_now = self.topics[topic.name]
        facts = {
            "id": topic_now.id,
            "partitions": topic_now.partitions,
            "replicationFactor": topic_now.replication_factor,
        }
        return done(Component.TOPICS, topic.name, changed=changed, observed=facts)

    def _record_write(self, what: str) -> int:
        self.writes.append(what)
        return 1

    def release(self, topics: Sequence[Topic], reclaim: Reclaim) -> list[Outcome]:
        """Delete managed topics."""
        self._record_call("release")
        outcomes = []
        for topic in topics:
            if reclaim == "Retain" or not topic.managed:
                outcomes.append(skipped(Component.TOPICS, topic.name, message="kept"))
            elif self.topics.pop(topic.name, None) is not None:
                outcomes.append(done(Component.TOPICS, topic.name, changed=self._record_write(f"delete {topic.name}")))
            else:
                outcomes.append(done(Component.TOPICS, topic.name))
        return outcomes


class MemoryClusters(MemoryActuator):
    """An in-memory actuator for other Kafka clusters."""

    def __init__(self) -> None:
        super().__init__()
        self.partitions = 3
        self.ids: dict[str, str] = {}
        self.topic_names: list[str] = []

    def names(self, namespace: str, kafka: KafkaSpec) -> list[str]:
        """Return `topic_names`."""
        self._record_call("names")
        return self.topic_names

    def topic(self, namespace: str, kafka: KafkaSpec, name: str) -> LiveTopic | None:
        """Return the topic."""
        self._record_call("topic")
        servers = kafka.bootstrap_servers
        return LiveTopic(self.partitions, 1, self.ids.get(servers, f"{servers}/{name}")) if self.partitions else None

    def find_missing(self, namespace: str, kafka: KafkaSpec, names: Sequence[str]) -> frozenset[str]:
        """Return all `names` if `partitions` is 0 (no topic exists), else an empty set."""
        self._record_call("find_missing")
        return frozenset() if self.partitions else frozenset(names)


class MemorySchemas(MemoryActuator):
    """An in-memory actuator for schemas. If `busy` is set, `ensure` and `release` report Waiting."""

    def __init__(self) -> None:
        super().__init__()
        self.schemas: dict[str, LiveSchema] = {}
        self.logins: dict[str, set[str]] = {}
        self.claims: dict[str, list[Claim]] = {}
        self.busy = False
        self.lock_error: LockNotHeldError | None = None

    @contextmanager
    def lock(self, schema: str) -> Iterator[Callable[[], None]]:
        """Raise `lock_error` if it is set. Otherwise, yield a function that does nothing."""
        self._record_call("lock")
        if self.lock_error is not None:
            raise self.lock_error
        yield lambda: None

    def observe(self, schema: str) -> LiveSchema | None:
        """Return a schema, or None if it does not exist."""
        self._record_call("observe")
        return self.schemas.get(schema)

    def ensure(
        self,
        schema: Schema,
        *,
        owner: Owner,
        secrets: PipelineSecrets,
        adopt: bool = False,
        exists: Exists | None = None,
    ) -> list[Outcome]:
        """Create or change a schema, or fail as the actuator for Postgres would."""
        self._record_call("ensure")
        live = self.schemas.get(schema.name)
        if self.busy:
            return [waiting(Component.SCHEMA, schema.name, "a lock was not free")]
        if live is not None:
            errors = [] if adopt else list(ownership_errors(schema.name, live.owner, owner))
            errors += [error for table in schema.tables for error in column_type_errors(table, live)]
            errors += [damage_error(schema)] if schema.lost else []
            if errors:
                return [failed(Component.SCHEMA, schema.name, errors[0])]
        for claim, error in find_conflicts(
            schema, owner, [claim for claims in self.claims.values() for claim in claims]
        ):
            if not adopt or (exists and exists(claim.owner.namespace, claim.owner.name)):
                return [failed(Component.SCHEMA, schema.name, error)]
            self.claims.pop(claim.schema, None)
        self.claims[schema.name] = [
            Claim(topic, schema.source_managed, owner, schema.name) for topic in schema.own_sources
        ]
        logins = {login.user for login in (secrets.writer, *secrets.staged) if login.user.startswith(schema.writer)}
        suffixes = self.logins.setdefault(schema.name, set()) if secrets.retire_at is not None else set()
        self.logins[schema.name] = suffixes | {login.removeprefix(schema.writer) for login in logins}
        wanted = self._wanted(schema, owner, live or LiveSchema())
        if wanted != live:
            self.writes.append(f"schema {schema.name}")
        self.schemas[schema.name] = wanted
        return [done(Component.SCHEMA, schema.name, changed=int(wanted != live))]

    def _wanted(self, schema: Schema, owner: Owner, live: LiveSchema) -> LiveSchema:
        columns = {
            table.name: {
                **{c.name: column_type(c.definition) for c in table.columns},
                **live.columns.get(table.name, {}),
            }
            for table in schema.tables
        }
        newer = schema.generation >= live.generation or live.owner != owner
        abandoned = {key for key, reader in live.readers.items() if reader in schema.abandoned}
        shapes = {key: shape for key, shape in live.shapes.items() if key not in abandoned}
        readers = {key: reader for key, reader in live.readers.items() if key not in abandoned}
        replays = {reader: replay for reader, replay in live.replays.items() if reader not in schema.abandoned}
        if schema.replay:
            replays.setdefault(schema.replay, LiveReplay())
        if schema.switched_replay:
            replays[schema.switched_replay] = replace(replays[schema.switched_replay], switched=True)
        return LiveSchema(
            owner=owner,
            shapes={
                **shapes,
                **{
                    (row.name, row.version): with_types_of(row.shape, shapes.get((row.name, row.version)))
                    for row in schema.aggregations
                },
            },
            readers={**readers, **{(row.name, row.version): row.reader for row in schema.aggregations}},
            replays=replays,
            columns={**live.columns, **columns},
            generation=schema.generation if newer else live.generation,
            accepted=json.loads(schema.accepted) if newer else live.accepted,
            closed_until=live.closed_until,
            partitions=max(schema.partitions, live.partitions),
            topic_id=live.topic_id,
            next_offsets=live.next_offsets,
            losses=live.losses,
            held_up=live.held_up,
            skipped=live.skipped,
            created_topics=live.created_topics | frozenset(schema.topics_to_record),
            slots=schema.slots or live.slots,
        )

    def release(self, schema: Schema, *, owner: Owner, reclaim: Reclaim) -> list[Outcome]:
        """Delete a schema."""
        self._record_call("release")
        if reclaim == "Retain":
            return [skipped(Component.SCHEMA, schema.name, message="kept")]
        if self.busy:
            return [waiting(Component.SCHEMA, schema.name, "a lock was not free")]
        removed = self.schemas.pop(schema.name, None)
        self.claims.pop(schema.name, None)
        if removed is not None:
            self.writes.append(f"drop {schema.name}")
        return [done(Component.SCHEMA, schema.name, changed=int(removed is not None))]

    def expire(self, schema: Schema) -> list[Outcome]:
        """Do nothing."""
        self._record_call("expire")
        return [done(Component.SCHEMA, schema.name)]


class MemorySecrets(MemoryActuator):
    """An in-memory actuator for secrets."""

    def __init__(self) -> None:
        super().__init__()
        self.files: dict[tuple[str, str], dict[str, str]] = {}
        self.patience_seconds = 60.0

    def ensure(self, namespace: str, pipeline: str, *, writer: str, reader: str, rotate: str = "") -> PipelineSecrets:
        """Create logins, or prepare new logins for a rotation."""
        self._record_call("ensure")
        files = self.files.setdefault((namespace, pipeline), {})
        new_files = credentials.files_to_ensure(files, writer=writer, reader=reader, rotate=rotate)
        return self._record_write("stage" if files else "secrets of", namespace, pipeline, new_files)

    def switch(self, namespace: str, pipeline: str, *, now: dt.datetime) -> PipelineSecrets:
        """Activate the staged logins."""
        self._record_call("switch")
        new_files = credentials.files_to_switch(self.files[namespace, pipeline], now)
        return self._record_write("switch", namespace, pipeline, new_files)

    def retire(self, namespace: str, pipeline: str) -> PipelineSecrets:
        """Remove the former logins."""
        self._record_call("retire")
        return self._record_write(
            "retire", namespace, pipeline, credentials.files_to_retire(self.files[namespace, pipeline])
        )

    def remove(self, namespace: str, pipeline: str) -> None:
        """Remove a pipeline's secrets."""
        self._record_call("remove")
        self.files.pop((namespace, pipeline), None)

    def _record_write(self, what: str, namespace: str, pipeline: str, new_files: dict[str, str]) -> PipelineSecrets:
        files = self.files[namespace, pipeline]
        files |= new_files
        if new_files:
            self.writes.append(f"{what} {namespace}/{pipeline}")
        return credentials.read_logins(files, retire_delay_seconds=self.patience_seconds, changed=len(new_files))


class MemoryRuntime(MemoryActuator):
    """An in-memory runtime.

    Attributes:
        updating: names of workloads that are being updated, but still serve.
    """

    def __init__(self) -> None:
        super().__init__()
        self.running: dict[tuple[str, str], dict[str, Workload]] = {}
        self.starting: set[str] = set()
        self.updating: set[str] = set()
        self.default_pipeline = "orders"

    def ensure(self, workloads: Sequence[Workload]) -> list[Outcome]:
        """Run these workloads only."""
        self._record_call("ensure")
        processor = next(workload for workload in workloads if workload.component == "processor")
        before = self.running.get((processor.namespace, str(processor.pipeline)), {})
        after = {workload.name: workload for workload in workloads}
        self.running[processor.namespace, str(processor.pipeline)] = after
        self.writes += [f"run {name}" for name in after if before.get(name) != after[name]]
        self.writes += [f"end {name}" for name in before if name not in after]
        return [self._outcome(workload, changed=before.get(name) != workload) for name, workload in after.items()]

    def _outcome(self, workload: Workload, *, changed: bool) -> Outcome:
        component = COMPONENT_OF_WORKLOAD[workload.component]
        if workload.name in self.starting | self.updating:
            serving, text = workload.name in self.updating, f"{workload.name} starts"
            return waiting(component, workload.name, text, changed=changed, serving=serving)
        return done(component, workload.name, changed=changed)

    def observe(self, workloads: Sequence[Workload]) -> list[Outcome]:
        """Return the running workloads' outcomes."""
        self._record_call("observe")
        running = [
            self.running.get((w.namespace, str(w.pipeline or self.default_pipeline)), {}).get(w.name) for w in workloads
        ]
        return [self._outcome(workload, changed=False) for workload in running if workload is not None]

    def remove(self, namespace: str, pipeline: str) -> None:
        """Remove a pipeline's workloads."""
        self._record_call("remove")
        self.running.pop((namespace, pipeline), None)

    def exists(self, namespace: str, pipeline: str) -> bool:
        """Return whether workloads exist."""
        return (namespace, pipeline) in self.running

    def endpoints(self, namespace: str, pipeline: str) -> Mapping[str, str]:
        """Return fictitious base URLs."""
        parts = [workload.component for workload in self.running.get((namespace, pipeline), {}).values()]
        return {part: f"http://{part}.{namespace}" for part in parts if part != "processor"}


@dataclass
class MemoryWorld:
    """All in-memory actuators, at first empty and with one broker."""

    kafka: MemoryTopics = field(default_factory=MemoryTopics)
    postgres: MemorySchemas = field(default_factory=MemorySchemas)
    secrets: MemorySecrets = field(default_factory=MemorySecrets)
    runtime: MemoryRuntime = field(default_factory=MemoryRuntime)
    clusters: MemoryClusters = field(default_factory=MemoryClusters)
    connect: Connectors | None = None

    @property
    def actuators(self) -> Actuators:
        """Return the actuators for `reconcile`."""
        return Actuators(self.kafka, self.postgres, self.secrets, self.runtime, self.clusters, self.connect)

    def take_writes(self) -> list[str]:
        """Return the writes so far, and clear the list."""
        parts: tuple[MemoryActuator, ...] = (self.kafka, self.postgres, self.secrets, self.runtime)
        writes = [what for part in parts for what in part.writes]
        for part in parts:
            part.writes.clear()
        return writes
