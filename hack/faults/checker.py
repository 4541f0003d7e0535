"""Checks all windows and dead letters against a recomputation from the records of the topic."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import httpx
import polars as pl
from confluent_kafka import Consumer, TopicPartition

from demo.runtime import Runtime
from faults.sender import Acknowledged

PARTITIONS = 3
PIPELINE: dict[str, Any] = {
    "apiVersion": "tidemill.dev/v1alpha1",
    "kind": "AnalyticsPipeline",
    "metadata": {"name": "faults", "namespace": "faults"},
    "spec": {
        "source": {
            "topic": {"partitions": PARTITIONS},
            "fields": [
                {"name": "id", "type": "integer", "required": True},
                {"name": "k", "type": "string", "required": True},
                {"name": "ts", "type": "timestamp", "required": True},
            ],
            "key": "k",
            # So large that no event is late, however long a fault lasts.
            "eventTime": {"field": "ts", "maxDisorder": "2h"},
        },
        "aggregations": [
            {
                "name": "by_k",
                "groupBy": ["k"],
                "window": {"type": "tumbling", "size": "1m"},
                "metrics": [
                    {"name": "events", "function": "count"},
                    {"name": "ids", "function": "sum", "field": "id"},
                    {"name": "least", "function": "min", "field": "id"},
                    {"name": "most", "function": "max", "field": "id"},
                ],
            }
        ],
        "processor": {"flushInterval": "200ms"},
        "api": {"cacheTtl": "1s"},
    },
}
_GOOD = re.compile(rb'\{"id":(\d{1,15}),"k":"(k\d)","ts":(\d{13})\}')
_READ_SECONDS, _CHUNK = 120.0, 20_000
_TOTALS = (pl.sum("events"), pl.sum("ids"), pl.min("least"), pl.max("most"))
_KEYS = ("k", "start")

Window = tuple[int, int, int, int]


@dataclass(frozen=True)
class Outcome:
    """The number of counted, lost, doubled and wrongly counted events.

    Attributes:
        counted: The number of events that were counted in windows.
        dead: The number of dead letters.
        lost: The number of events that were acknowledged but are not in the topic.
        doubled: The number of events that are in the topic more than once.
        wrong: The number of windows that differ from the recomputation, plus the number of missing or surplus dead
            letters.
    """

    counted: int
    dead: int
    lost: int
    doubled: int
    wrong: int

    @property
    def is_exact(self) -> bool:
        """Return whether every acknowledged event was counted or became a dead letter exactly once."""
        return self.lost == self.doubled == self.wrong == 0


class Checker:
    """Checks one pipeline's events. It reads each record of the topic only once."""

    def __init__(self, runtime: Runtime, acknowledged: Acknowledged) -> None:
        self._runtime, self._acknowledged = runtime, acknowledged
        self._topic = f"{runtime.namespace}.{runtime.name}.events"
        self._next_offsets = dict.fromkeys(range(PARTITIONS), 0)
        self._occurrences = bytearray()
        self._windows = pl.DataFrame(schema={"k": pl.String, "start": pl.Int64} | dict.fromkeys(_METRICS, pl.Int64))
        self._invalid_count = 0

    def restart(self) -> None:
        """Read the topic from its beginning at the next check, because it was created again."""
        self._next_offsets = dict.fromkeys(self._next_offsets, 0)

    def check(self) -> Outcome:
        """Return the outcome of all events. Call it when all events are processed and no sender runs."""
        self._read()
        expected, api_windows = self._expected(), _api_windows(self._runtime)
        acknowledged, occurrences = self._acknowledged.marks(), self._occurrences
        lost = sum(mark and not (at < len(occurrences) and occurrences[at]) for at, mark in _nonzero(acknowledged))
        dead = len(_fetch_rows(self._runtime, "dead-letters"))
        return Outcome(
            counted=sum(window[0] for window in api_windows.values()),
            dead=dead,
            lost=lost,
            doubled=sum(count - 1 for _, count in _nonzero(bytes(occurrences)) if count > 1),
            wrong=sum(expected.get(key) != api_windows.get(key) for key in expected.keys() | api_windows.keys())
            + abs(self._invalid_count - dead),
        )

    def _expected(self) -> dict[tuple[str, int], Window]:
        return {(row[0], row[1]): (row[2], row[3], row[4], row[5]) for row in self._windows.iter_rows()}

    def _read(self) -> None:
        """Read the new records of the topic.

        Raises:
            RuntimeError: The topic cannot be read in time.
        """
        consumer = Consumer(
            {"bootstrap.servers": self._runtime.kafka, "group.id": "faults-check", "enable.auto.commit": False}
        )
        try:
            ends = {
                p: consumer.get_watermark_offsets(TopicPartition(self._topic, p), timeout=20)[1]
                for p in self._next_offsets
            }
            consumer.assign([TopicPartition(self._topic, p, at) for p, at in self._next_offsets.items()])
            silent = 0.0
            while any(self._next_offsets[p] < end for p, end in ends.items()):
                messages = [message for message in consumer.consume(_CHUNK, 1.0) if message.error() is None]
                silent = 0.0 if messages else silent + 1.0
                if silent > _READ_SECONDS:
                    raise RuntimeError(
                        f"{self._topic}: no records for {_READ_SECONDS:.0f} s at {self._next_offsets} of {ends}"
                    )
                self._add([message.value() or b"" for message in messages])
                for message in messages:
                    self._next_offsets[int(message.partition() or 0)] = int(message.offset() or 0) + 1
        finally:
            consumer.close()

    def _add(self, values: list[bytes]) -> None:
        captured = [match.groups() for value in values if (match := _GOOD.fullmatch(value))]
        self._invalid_count += len(values) - len(captured)
        if not captured:
            return
        ids = [int(number) for number, _, _ in captured]
        if (largest_id := max(ids)) >= len(self._occurrences):
            self._occurrences.extend(bytes(largest_id - len(self._occurrences) + 1_000_000))
        for number in ids:
            self._occurrences[number] = min(self._occurrences[number] + 1, 255)
        events = pl.DataFrame(
            {"k": [key.decode() for _, key, _ in captured], "id": ids, "ts": [int(at) for *_, at in captured]}
        )
        start = (pl.col("ts") // 60_000 * 60_000).alias("start")
        sums = [pl.len().cast(pl.Int64).alias("events"), pl.sum("id").alias("ids")]
        windows = events.group_by("k", start).agg(*sums, pl.min("id").alias("least"), pl.max("id").alias("most"))
        self._windows = pl.concat([self._windows, windows]).group_by(_KEYS).agg(*_TOTALS)


_METRICS = ("events", "ids", "least", "most")


def _nonzero(marks: bytes) -> list[tuple[int, int]]:
    """Return the indexes of values that are not 0, and the values."""
    return [(match.start(), marks[match.start()]) for match in re.finditer(rb"[^\x00]", marks, re.DOTALL)]


def _api_windows(runtime: Runtime) -> dict[tuple[str, int], Window]:
    """Return all windows of the API, by group and start (epoch ms)."""
    rows = _fetch_rows(runtime, "aggregates/by_k")
    starts = pl.Series([row["window_start"] for row in rows], dtype=pl.String).str.to_datetime(time_zone="UTC")
    return {
        (row["k"], start): (row["events"], row["ids"], row["least"], row["most"])
        for row, start in zip(rows, starts.dt.epoch("ms").to_list(), strict=True)
    }


def _fetch_rows(runtime: Runtime, what: str) -> list[dict[str, Any]]:
    """Return the rows of all pages of an answer."""
    rows: list[dict[str, Any]] = []
    parameters: dict[str, Any] = {"limit": 1000}
    url = f"{runtime.url('api')}/v1/pipelines/{runtime.name}/{what}"
    while True:
        body = httpx.get(url, params=parameters, timeout=30.0, trust_env=False).raise_for_status().json()
        rows += body["data"]
        if body["next_cursor"] is None:
            return rows
        parameters["cursor"] = body["next_cursor"]
