"""A world in memory: the four protocols of the actuators, kept as Kafka, Postgres and a runtime keep them."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from tidemill_operator.actuators import credentials
from tidemill_operator.actuators.base import Actuators, Exists, PipelineSecrets, Reclaim
from tidemill_operator.errors import NotOurTurn, Reason, TidemillError
from tidemill_operator.outcome import Component, Outcome, done, failed, skipped, waiting
from tidemill_operator.plan.kafka.claims import Claim, disputes
from tidemill_operator.plan.kafka.replication import Spread
from tidemill_operator.plan.model import LiveReplay, LiveSchema, LiveTopic, Owner, Schema, Topic, Workload
from tidemill_operator.plan.postgres.damage import damaged
from tidemill_operator.plan.postgres.noted import with_types_of
from tidemill_operator.plan.postgres.schema import column_type
from tidemill_operator.plan.refusals import column_changes, foreign, gone, missing

_COMPONENTS = {
    "processor": Component.PROCESSORS,
    "replay": Component.PROCESSORS,
    "ingest": Component.INGEST,
    "api": Component.API,
}


class Part:
    """What all four have in common: writes are counted, and each may be out of reach."""

    def __init__(self) -> None:
        self.writes: list[str] = []
        self.calls: list[str] = []
        self.failure: Exception | None = None

    def unreachable(self, who: str) -> None:
        self.failure = TidemillError(Reason.UNREACHABLE, f"{who} does not answer")

    def _called(self, what: str) -> None:
        self.calls.append(what)
        if self.failure is not None:
            raise self.failure


class MemoryTopics(Part):
    """Topics by name, with their configs."""

    def __init__(self) -> None:
        super().__init__()
        self.topics: dict[str, LiveTopic] = {}
        self.configs: dict[str, dict[str, str]] = {}
        self.nodes = 1
        self.made = 0
        self.spreads: list[Spread | None] = []
        self.moving = ""

    def put(self, name: str, partitions: int, replication_factor: int = 1, **config: str) -> None:
        """A topic that somebody else made."""
        self.made += 1
        self.topics[name] = LiveTopic(partitions, replication_factor, f"id-{self.made}")
        self.configs[name] = dict(config)

    def brokers(self) -> int:
        self._called("brokers")
        return self.nodes

    def observe(self, names: Sequence[str]) -> Mapping[str, LiveTopic]:
        self._called("observe")
        return {name: self.topics[name] for name in names if name in self.topics}

    def ensure(self, topics: Sequence[Topic], *, spread: Spread | None = None) -> list[Outcome]:
        self._called("ensure")
        self.spreads.append(spread)
        if self.moving:
            return [waiting(Component.TOPICS, topic.name, self.moving) for topic in topics]
        return [self._ensure(topic) for topic in topics]

    def _ensure(self, topic: Topic) -> Outcome:
        changed, live = 0, self.topics.get(topic.name)
        if live is None and not topic.managed:
            return failed(Component.TOPICS, topic.name, missing(topic))
        if live is None and topic.lost:
            return failed(Component.TOPICS, topic.name, gone(topic))
        if live is None:
            self.put(topic.name, topic.partitions, topic.replication_factor, **topic.config)
            changed = self._wrote(f"create {topic.name}")
        elif topic.managed:
            if live.partitions < topic.partitions:
                self.topics[topic.name] = replace(live, partitions=topic.partitions)
                changed += self._wrote(f"grow {topic.name}")
            for key, value in topic.config.items():
                if self.configs[topic.name].get(key) != value:
                    self.configs[topic.name][key] = value
                    changed += self._wrote(f"set {key} of {topic.name}")
        now = self.topics[topic.name]
        facts = {"id": now.id, "partitions": now.partitions, "replicationFactor": now.replication_factor}
        return done(Component.TOPICS, topic.name, changed=changed, observed=facts)

    def _wrote(self, what: str) -> int:
        self.writes.append(what)
        return 1

    def release(self, topics: Sequence[Topic], reclaim: Reclaim) -> list[Outcome]:
        self._called("release")
        outcomes = []
        for topic in topics:
            if reclaim == "Retain" or not topic.managed:
                outcomes.append(skipped(Component.TOPICS, topic.name, message="kept"))
            elif self.topics.pop(topic.name, None) is not None:
                outcomes.append(done(Component.TOPICS, topic.name, changed=self._wrote(f"delete {topic.name}")))
            else:
                outcomes.append(done(Component.TOPICS, topic.name))
        return outcomes


class MemorySchemas(Part):
    """Schemas by name, and the endings of the writers that may log in."""

    def __init__(self) -> None:
        super().__init__()
        self.schemas: dict[str, LiveSchema] = {}
        self.logins: dict[str, set[str]] = {}
        self.claims: dict[str, Claim] = {}
        self.busy = False
        self.taken: NotOurTurn | None = None

    @contextmanager
    def exclusive(self, schema: str) -> Iterator[Callable[[], None]]:
        self._called("exclusive")
        if self.taken is not None:
            raise self.taken
        yield lambda: None

    def observe(self, schema: str) -> LiveSchema | None:
        self._called("observe")
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
        self._called("ensure")
        live = self.schemas.get(schema.name)
        if self.busy:
            return [waiting(Component.SCHEMA, schema.name, "a lock was not free")]
        if live is not None:
            errors = [] if adopt else list(foreign(schema.name, live.owner, owner))
            errors += [error for table in schema.tables for error in column_changes(table, live)]
            errors += [damaged(schema)] if schema.lost else []
            if errors:
                return [failed(Component.SCHEMA, schema.name, errors[0])]
        for claim, error in disputes(schema, owner, list(self.claims.values())):
            if not adopt or (exists and exists(claim.owner.namespace, claim.owner.name)):
                return [failed(Component.SCHEMA, schema.name, error)]
            del self.claims[claim.schema]
        self.claims[schema.name] = Claim(schema.source, schema.managed, owner, schema.name)
        logins = {login.user for login in (secrets.writer, *secrets.following) if login.user.startswith(schema.writer)}
        known = self.logins.setdefault(schema.name, set()) if secrets.retire_at is not None else set()
        self.logins[schema.name] = known | {login.removeprefix(schema.writer) for login in logins}
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
        gone = {key for key, reader in live.readers.items() if reader in schema.abandoned}
        kept = {key: shape for key, shape in live.shapes.items() if key not in gone}
        readers = {key: reader for key, reader in live.readers.items() if key not in gone}
        replays = {reader: found for reader, found in live.replays.items() if reader not in schema.abandoned}
        if schema.replay:
            replays.setdefault(schema.replay, LiveReplay())
        if schema.switched:
            replays[schema.switched] = replace(replays[schema.switched], switched=True)
        return LiveSchema(
            owner=owner,
            shapes={
                **kept,
                **{
                    (row.name, row.version): with_types_of(row.shape, kept.get((row.name, row.version)))
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
            read_from=live.read_from,
            read_to=live.read_to,
            losses=live.losses,
            held_up=live.held_up,
            skipped=live.skipped,
            made=live.made | frozenset(schema.made),
        )

    def release(self, schema: Schema, *, owner: Owner, reclaim: Reclaim) -> list[Outcome]:
        self._called("release")
        if reclaim == "Retain":
            return [skipped(Component.SCHEMA, schema.name, message="kept")]
        if self.busy:
            return [waiting(Component.SCHEMA, schema.name, "a lock was not free")]
        gone = self.schemas.pop(schema.name, None)
        self.claims.pop(schema.name, None)
        if gone is not None:
            self.writes.append(f"drop {schema.name}")
        return [done(Component.SCHEMA, schema.name, changed=int(gone is not None))]

    def expire(self, schema: Schema) -> list[Outcome]:
        self._called("expire")
        return [done(Component.SCHEMA, schema.name)]


class MemorySecrets(Part):
    """Secrets by namespace and pipeline, as files by their names."""

    def __init__(self) -> None:
        super().__init__()
        self.files: dict[tuple[str, str], dict[str, str]] = {}
        self.patience_seconds = 60.0

    def ensure(self, namespace: str, pipeline: str, *, writer: str, reader: str, rotate: str = "") -> PipelineSecrets:
        self._called("ensure")
        files = self.files.setdefault((namespace, pipeline), {})
        made = credentials.due(files, writer=writer, reader=reader, rotate=rotate)
        return self._wrote("stage" if files else "secrets of", namespace, pipeline, made)

    def switch(self, namespace: str, pipeline: str, *, now: dt.datetime) -> PipelineSecrets:
        self._called("switch")
        made = credentials.switched(self.files[namespace, pipeline], now)
        return self._wrote("switch", namespace, pipeline, made)

    def retire(self, namespace: str, pipeline: str) -> PipelineSecrets:
        self._called("retire")
        return self._wrote("retire", namespace, pipeline, credentials.retired(self.files[namespace, pipeline]))

    def remove(self, namespace: str, pipeline: str) -> None:
        self._called("remove")
        self.files.pop((namespace, pipeline), None)

    def _wrote(self, what: str, namespace: str, pipeline: str, made: dict[str, str]) -> PipelineSecrets:
        files = self.files[namespace, pipeline]
        files |= made
        if made:
            self.writes.append(f"{what} {namespace}/{pipeline}")
        return credentials.told(files, patience_seconds=self.patience_seconds, changed=len(made))


class MemoryRuntime(Part):
    """Workloads by pipeline; ready unless named in `starting`, or in `changing`: those serve meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self.running: dict[tuple[str, str], dict[str, Workload]] = {}
        self.starting: set[str] = set()
        self.changing: set[str] = set()
        self.whose = "orders"

    def ensure(self, workloads: Sequence[Workload]) -> list[Outcome]:
        self._called("ensure")
        processor = next(workload for workload in workloads if workload.component == "processor")
        before = self.running.get((processor.namespace, str(processor.pipeline)), {})
        after = {workload.name: workload for workload in workloads}
        self.running[processor.namespace, str(processor.pipeline)] = after
        self.writes += [f"run {name}" for name in after if before.get(name) != after[name]]
        self.writes += [f"end {name}" for name in before if name not in after]
        return [self._outcome(workload, changed=before.get(name) != workload) for name, workload in after.items()]

    def _outcome(self, workload: Workload, *, changed: bool) -> Outcome:
        component = _COMPONENTS[workload.component]
        if workload.name in self.starting | self.changing:
            serving, text = workload.name in self.changing, f"{workload.name} starts"
            return waiting(component, workload.name, text, changed=changed, serving=serving)
        return done(component, workload.name, changed=changed)

    def observe(self, workloads: Sequence[Workload]) -> list[Outcome]:
        self._called("observe")
        known = [self.running.get((w.namespace, str(w.pipeline or self.whose)), {}).get(w.name) for w in workloads]
        return [self._outcome(workload, changed=False) for workload in known if workload is not None]

    def remove(self, namespace: str, pipeline: str) -> None:
        self._called("remove")
        self.running.pop((namespace, pipeline), None)

    def exists(self, namespace: str, pipeline: str) -> bool:
        return (namespace, pipeline) in self.running

    def endpoints(self, namespace: str, pipeline: str) -> Mapping[str, str]:
        parts = [workload.component for workload in self.running.get((namespace, pipeline), {}).values()]
        return {part: f"http://{part}.{namespace}" for part in parts if part != "processor"}


@dataclass
class World:
    """All of it."""

    kafka: MemoryTopics = field(default_factory=MemoryTopics)
    postgres: MemorySchemas = field(default_factory=MemorySchemas)
    secrets: MemorySecrets = field(default_factory=MemorySecrets)
    runtime: MemoryRuntime = field(default_factory=MemoryRuntime)

    @property
    def actuators(self) -> Actuators:
        """As `reconcile` takes it."""
        return Actuators(kafka=self.kafka, postgres=self.postgres, secrets=self.secrets, runtime=self.runtime)

    def take_writes(self) -> list[str]:
        """What was written since the last call."""
        parts: tuple[Part, ...] = (self.kafka, self.postgres, self.secrets, self.runtime)
        found = [what for part in parts for what in part.writes]
        for part in parts:
            part.writes.clear()
        return found


@pytest.fixture
def world() -> World:
    """An empty world with one broker."""
    return World()


@pytest.fixture
def make_world() -> Callable[[], World]:
    """Further ones."""
    return World


def _document(**spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "tidemill.dev/v1alpha1",
        "kind": "AnalyticsPipeline",
        "metadata": {"name": "orders", "namespace": "shop", "uid": "uid-1", "generation": 1},
        "spec": {
            "source": {
                "topic": {"partitions": 3},
                "fields": [
                    {"name": "ts", "type": "timestamp", "required": True},
                    {"name": "country", "type": "string"},
                    {"name": "amount", "type": "number"},
                ],
                "key": "country",
                "eventTime": {"field": "ts"},
            },
            "aggregations": [
                {
                    "name": "by_country",
                    "groupBy": ["country"],
                    "window": {"type": "tumbling", "size": "1h"},
                    "metrics": [{"name": "orders", "function": "count"}],
                }
            ],
            **spec,
        },
    }


@pytest.fixture
def document() -> dict[str, Any]:
    """A small valid resource, to be edited: `shop/orders`."""
    return _document()
