"""A pipeline of a shape under `tidemill up`, whose processes die and whose topics and rows change."""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from confluent_kafka import Consumer, TopicPartition

from oracle.compare import differences, summary
from oracle.events import Event
from oracle.expressions import moment_of
from oracle.model import Model
from oracle.platform import Running
from oracle.queries import Query, answered
from shapes.shape import (
    BASE,
    METRICS,
    MORE_PARTITIONS,
    NAMESPACE,
    PARTITIONS,
    PLACES,
    ROUND_MS,
    TRANSFORM,
    Part,
    Shape,
    Surroundings,
)
from tidemill_contract import names
from tidemill_contract.staged import read_origin
from waiting import eventually


class Play:
    """A pipeline of a shape, its events, and the model."""

    def __init__(self, servers: Any, folder: Path, stack: ExitStack, shape: type[Shape]) -> None:
        self._rnd = random.Random(shape.name)
        self._kafka = servers.kafka
        self.shape = shape(Surroundings(servers, folder, stack))
        own = self.shape.spec()
        source = {
            "topic": {"partitions": PARTITIONS},
            "eventTime": {"field": "ts", "maxDisorder": "10m", "idleTimeout": "5h", "maxAdvance": "90d"},
            **own.pop("source"),
        }
        by_key = {"name": "by_k", "groupBy": ["k"], "window": {"type": "tumbling", "size": "1m"}, "metrics": METRICS}
        hops = {"type": "hopping", "size": "3m", "hop": "1m"}
        self.spec: dict[str, Any] = {
            "source": source,
            "transform": TRANSFORM,
            "aggregations": [by_key, {"name": "all", "window": hops, "metrics": METRICS}],
            "processor": {"flushInterval": "100ms", "replicas": 1},
            "ingest": {"enabled": False},
            "api": {"cacheTtl": "0s"},
            "auth": {"required": False},
            **own,
        }
        known = {**source, "fields": [*source["fields"], *self.shape.known()]}
        self.model = Model({**self.spec, "source": known})
        self._logs = dict.fromkeys(range(PARTITIONS), 0)
        self._low = BASE
        self._consumed = self._copies = 0
        self.running = Running(servers, folder, self._document())
        stack.callback(self.running.close)

    def _document(self) -> dict[str, Any]:
        metadata = {"name": self.shape.name, "namespace": NAMESPACE, "uid": f"uid-{self.shape.name}", "generation": 1}
        head = {"apiVersion": "tidemill.dev/v1alpha1", "kind": "AnalyticsPipeline"}
        return {**head, "metadata": metadata, "spec": self.spec}

    # --- events ---

    def _send(self, drawn: list[tuple[int, bytes, list[Part]]]) -> list[Event]:
        """Write records to their partitions; the events that they should become."""
        carriers, events = list[Event](), list[Event]()
        for partition, raw, parts in drawn:
            offset = self._logs[partition]
            self._logs[partition] += 1
            carriers.append(Event(partition, offset, raw))
            self._consumed += len(parts) if self.shape.records_per_part else 1
            self._copies += self.shape.repeats and not parts
            for place, part in enumerate(parts, offset * PLACES):
                if isinstance(part, str):
                    events.append(Event(partition, place, raw, reason=part))
                else:
                    values = {**part, "ts": moment_of(part["ts"])}
                    events.append(Event(partition, place, raw, part["ts"], values))
        self.running.send(carriers)
        return events

    def _some(self, number: int, *, late: bool) -> list[Event]:
        """Records of this round, and some of which all windows are closed."""
        drawn = []
        for _ in range(number):
            low = self._low
            if late and self._rnd.random() < 0.05:
                low -= 3 * ROUND_MS
            drawn.append((self._rnd.choice(list(self._logs)), *self.shape.write(self._rnd, low)))
        return self._send(drawn)

    def _brakes(self) -> list[Event]:
        """Events at the end of the round, so many in each partition that its time is believed."""
        drawn = []
        for partition in self._logs:
            found = 0
            while found < 3:
                raw, parts = self.shape.write(self._rnd, self._low + ROUND_MS)
                if any(isinstance(part, dict) for part in parts):
                    drawn.append((partition, raw, parts))
                    found += 1
        return self._send(drawn)

    def round(self, operation: Callable[[], None], *, late: bool = True, compare: bool = True) -> None:
        """Write events before, during and after an operation, and compare what is counted."""
        self._low += ROUND_MS
        events, errors, stop, begun = list[Event](), list[BaseException](), threading.Event(), threading.Event()

        def write() -> None:
            try:
                for number in itertools.count():
                    if stop.is_set() and number >= 20:
                        return
                    events.extend(self._some(30, late=late))
                    if number > 3:
                        begun.set()
                    if not stop.is_set():
                        stop.wait(0.1)
            except BaseException as error:
                errors.append(error)
                begun.set()

        writer = threading.Thread(target=write)
        writer.start()
        try:
            assert begun.wait(120)
            operation()
        finally:
            stop.set()
            writer.join()
        assert not errors, errors
        self.model.take(events + self._brakes())
        self.model.settle()
        if compare:
            self.check()

    def begin(self) -> None:
        """The first events in each partition, by which windows are closed."""
        self.model.take(self._brakes())
        self.model.settle()
        self.check()

    # --- comparison ---

    def check(self) -> None:
        """Compare every window, dead letter and count."""
        model, sql = self.model, self.running.sql
        self.running.await_counted(self._consumed)
        versions = model.versions.values()
        self.running.await_closed({(version.name, version.number): version.closed for version in versions})
        for version in versions:
            query, rows = Query(), self.running.rows(version.name, Query())
            cells, wrong = differences(model, version, query, answered(model, version, query), rows)
            assert cells > 0
            assert not wrong, f"{version.name}:\n{summary(wrong)}"
            which = f"name = '{version.name}' AND version = {version.number}"
            late = sql(f"SELECT late_dead FROM {{s}}._aggregations WHERE {which}")
            assert late == [(version.late["dead"],)]
        counts = sql("SELECT sum(consumed), sum(filtered), sum(invalid) FROM {s}._offsets WHERE reader = 'live'")
        invalid = sum(event.values is None for event in model.seen)
        assert [tuple(map(int, row)) for row in counts] == [(self._consumed, model.filtered, invalid)]
        copies = sql("SELECT sum(duplicates)::bigint FROM {s}._offsets WHERE reader = 'live'")
        assert copies == [(self._copies,)]
        letters = sql('SELECT partition, "offset", element, aggregation, reason FROM {s}._dead_letters')
        places = self._staged() if self.shape.records_per_part else None
        dead = [
            (p, o * PLACES + max(element, 0) if places is None else places[p, o], name, reason)
            for p, o, element, name, reason in letters
        ]
        assert sorted(dead) == sorted(model.dead)

    def _staged(self) -> dict[tuple[int, int], int]:
        """The place of each record of the stage topic: the offset of its origin, and how many it has before."""
        topic, found = names.topic(NAMESPACE, self.shape.name, "stage"), dict[tuple[int, int], int]()
        settings = {"enable.partition.eof": True, "auto.offset.reset": "earliest", "group.id": "tests.shapes"}
        consumer = Consumer({"bootstrap.servers": self._kafka, **settings, "enable.auto.commit": False})
        try:
            consumer.assign([TopicPartition(topic, partition, 0) for partition in self._logs])
            ended, last = 0, dict[int, int]()
            while ended < len(self._logs):
                for message in consumer.consume(1_000, 1.0):
                    if message.error() is not None:
                        ended += 1
                        continue
                    origin = read_origin(message.headers())
                    assert origin is not None
                    partition, place = message.partition(), origin.offset * PLACES
                    last[partition] = place = max(place, last.get(partition, -1) + 1)
                    found[partition, message.offset()] = place
        finally:
            consumer.close()
        return found

    # --- operations ---

    def kill(self) -> None:
        """End processors at once, and the stage as well."""
        for _ in range(3):
            for component in ("processor", *(["stage"] if self.shape.records_per_part else [])):
                before = self.running.pids(component)
                assert self.running.kill(self._rnd, component)
                eventually(lambda: self.running.pids(component) not in (before, []), what=f"another {component} runs")  # noqa: B023

    def rebalance(self) -> None:
        """A second processor comes, and goes."""
        self.running.await_members(1)
        for replicas in (2, 1):
            self.spec["processor"] = {**self.spec["processor"], "replicas": replicas}
            self.running.edit(self.spec, {})
            self.running.await_members(replicas)

    def reset(self) -> None:
        """The processors' group begins anew, and the stage's as well."""
        if self.shape.records_per_part:
            self.running.reset_group("live", "stage")
            self.running.reset_group("stage", "events")
        else:
            self.running.reset_group()

    def grow(self) -> None:
        """The topic gets more partitions."""
        self.spec["source"] = {**self.spec["source"], "topic": {"partitions": MORE_PARTITIONS}}
        self.running.grow(self.spec)
        for partition in range(PARTITIONS, MORE_PARTITIONS):
            self.model.times[partition] = []
            self._logs[partition] = 0

    def replay(self) -> None:
        """Everything is counted again while events arrive, with the rows of now."""
        if self.shape.change_rows():
            # A processor reads all rows before it counts.
            assert self.running.kill(self._rnd)
        self.round(lambda: self.running.replay(list(self.model.versions), lambda: None), late=False, compare=False)
        self.model.seen = [
            event if event.values is None else replace(event, values=self.shape.joined(event.values))
            for event in self.model.seen
        ]
        self.model.replay(list(self.model.versions), self.running.versions())
        self.check()
