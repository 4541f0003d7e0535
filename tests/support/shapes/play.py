"""A pipeline of one shape under the local runtime, operations on the pipeline, and the comparison with the model."""

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
from tidemill_contract.stage_records import read_origin
from waiting import eventually


class Play:
    """A pipeline of one shape, its events, and the model of its windows."""

    def __init__(self, servers: Any, folder: Path, stack: ExitStack, shape: type[Shape]) -> None:
        self._rnd = random.Random(shape.name)
        self._kafka = servers.kafka
        self.shape = shape(Surroundings(servers, folder, stack))
        shape_spec = self.shape.spec()
        source = {
            "topic": {"partitions": PARTITIONS},
            "eventTime": {"field": "ts", "maxDisorder": "10m", "idleTimeout": "5h", "maxAdvance": "90d"},
            **shape_spec.pop("source"),
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
            **shape_spec,
        }
        model_source = {**source, "fields": [*source["fields"], *self.shape.aggregated_fields()]}
        self.model = Model({**self.spec, "source": model_source})
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
        """Write records to their partitions, and return the events that are expected of them."""
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

    def _send_random(self, number: int, *, late: bool) -> list[Event]:
        """Send random records of this round. With `late`, some events are late."""
        drawn = []
        for _ in range(number):
            low = self._low
            if late and self._rnd.random() < 0.05:
                low -= 3 * ROUND_MS
            drawn.append((self._rnd.choice(list(self._logs)), *self.shape.write(self._rnd, low)))
        return self._send(drawn)

    def _send_round_end(self) -> list[Event]:
        """Send three events after the end of the round to each partition, which closes the round's windows.

        A single event far ahead would not be accepted as the progress of a partition.
        """
        drawn = []
        for partition in self._logs:
            valid = 0
            while valid < 3:
                raw, parts = self.shape.write(self._rnd, self._low + ROUND_MS)
                if any(isinstance(part, dict) for part in parts):
                    drawn.append((partition, raw, parts))
                    valid += 1
        return self._send(drawn)

    def round(self, operation: Callable[[], None], *, late: bool = True, compare: bool = True) -> None:
        """Write events before, during and after an operation, and compare the results with the model."""
        self._low += ROUND_MS
        events, errors, stop, begun = list[Event](), list[BaseException](), threading.Event(), threading.Event()

        def write() -> None:
            try:
                for number in itertools.count():
                    if stop.is_set() and number >= 20:
                        return
                    events.extend(self._send_random(30, late=late))
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
        self.model.take(events + self._send_round_end())
        self.model.settle()
        if compare:
            self.check()

    def begin(self) -> None:
        """Send the first events to each partition, and compare the results with the model."""
        self.model.take(self._send_round_end())
        self.model.settle()
        self.check()

    # --- comparison ---

    def check(self) -> None:
        """Compare each window, dead letter and count with the model."""
        model, sql = self.model, self.running.sql
        self.running.await_counted(self._consumed)
        versions = model.versions.values()
        self.running.await_closed({(version.name, version.number): version.closed for version in versions})
        for version in versions:
            query, rows = Query(), self.running.rows(version.name, Query())
            cells, wrong = differences(model, version, query, answered(model, version, query), rows)
            assert cells > 0
            assert not wrong, f"{version.name}:\n{summary(wrong)}"
            condition = f"name = '{version.name}' AND version = {version.number}"
            late = sql(f"SELECT late_dead FROM {{s}}._aggregations WHERE {condition}")
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
        """Return the place of each record of the topic that the stage writes, by partition and offset.

        The place is the offset of the original record times `PLACES`, plus the number of its earlier parts.
        """
        topic, places = names.topic(NAMESPACE, self.shape.name, "stage"), dict[tuple[int, int], int]()
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
                    places[partition, message.offset()] = place
        finally:
            consumer.close()
        return places

    # --- operations ---

    def kill(self) -> None:
        """Kill a processor three times, and the stage if the shape has one."""
        for _ in range(3):
            for component in ("processor", *(["stage"] if self.shape.records_per_part else [])):
                before = self.running.pids(component)
                assert self.running.kill(self._rnd, component)
                eventually(lambda: self.running.pids(component) not in (before, []), what=f"a new {component} runs")  # noqa: B023

    def rebalance(self) -> None:
        """Add a second processor, and remove it again."""
        self.running.await_members(1)
        for replicas in (2, 1):
            self.spec["processor"] = {**self.spec["processor"], "replicas": replicas}
            self.running.edit(self.spec, {})
            self.running.await_members(replicas)

    def reset(self) -> None:
        """Reset the consumer group of the processors, and of the stage if the shape has one."""
        if self.shape.records_per_part:
            self.running.reset_group("live", "stage")
            self.running.reset_group("stage", "events")
        else:
            self.running.reset_group()

    def grow(self) -> None:
        """Add partitions to the topic."""
        self.spec["source"] = {**self.spec["source"], "topic": {"partitions": MORE_PARTITIONS}}
        self.running.grow(self.spec)
        for partition in range(PARTITIONS, MORE_PARTITIONS):
            self.model.times[partition] = []
            self._logs[partition] = 0

    def replay(self) -> None:
        """Replay all aggregations while events arrive. The replay joins the current rows of lookups."""
        if self.shape.change_rows():
            # A restarted processor reads all rows of lookups before it counts events.
            assert self.running.kill(self._rnd)
        self.round(lambda: self.running.replay(list(self.model.versions), lambda: None), late=False, compare=False)
        self.model.seen = [
            event if event.values is None else replace(event, values=self.shape.joined(event.values))
            for event in self.model.seen
        ]
        self.model.replay(list(self.model.versions), self.running.versions())
        self.check()
