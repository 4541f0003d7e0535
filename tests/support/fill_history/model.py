"""A pipeline whose metrics change, and a model that says which answers are exact and which are null."""

from __future__ import annotations

import json
import math
import statistics
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from kafka_records import KafkaRecord
from tidemill_contract.resource.spec import PipelineSpec
from tidemill_contract.runtime import AggregationRef, PipelineConfig
from tidemill_operator.plan.live import Owner

MINUTE = 60_000
BASE = 1_700_000_000_000 // (6 * MINUTE) * 6 * MINUTE
OWNER = Owner("tests", "feeds", "uid-1", "local")
METRICS: dict[str, tuple[str, str | None, set[str]]] = {
    "n": ("count", None, {"_count"}),
    "nv": ("count", "v", {"_n_v"}),
    "sv": ("sum", "v", {"_sum_v"}),
    "av": ("avg", "v", {"_n_v", "_sum_v"}),
    "mx": ("max", "v", {"_max_v"}),
    "fst": ("first", "v", {"_first_v", "_first_at_v"}),
    "va": ("variance", "v", {"_n_v", "_mean_v", "_m2_v"}),
}
SHAPES = {"tumbling": (MINUTE, MINUTE), "hopping": (3 * MINUTE, MINUTE)}


def config(generation: int, wanted: dict[str, list[str]]) -> PipelineConfig:
    """Return the pipeline with these metrics of each aggregation; it has no aggregation without metrics."""
    windows = {
        "tumbling": {"type": "tumbling", "size": "1m"},
        "hopping": {"type": "hopping", "size": "3m", "hop": "1m"},
    }
    spec = PipelineSpec.model_validate(
        {
            "source": {
                "topic": {"partitions": 1},
                "fields": [
                    {"name": "ts", "type": "timestamp", "required": True},
                    {"name": "k", "type": "string"},
                    {"name": "v", "type": "number"},
                ],
                "eventTime": {"field": "ts"},
            },
            "aggregations": [
                {
                    "name": name,
                    "groupBy": ["k"],
                    "window": windows[name],
                    "metrics": [{"name": m, "function": METRICS[m][0], "field": METRICS[m][1]} for m in metrics],
                }
                for name, metrics in wanted.items()
                if metrics
            ],
        }
    )
    refs = tuple(AggregationRef(name=a.name) for a in spec.aggregations)
    return PipelineConfig(namespace="tests", name="feeds", generation=generation, spec=spec, aggregations=refs)


@dataclass(frozen=True)
class Record(KafkaRecord):
    """A record of the pipeline's only partition."""

    p = 0
    o: int
    time: int
    group: str
    number: float | None

    def value(self) -> bytes:
        return json.dumps({"ts": self.time, "k": self.group, "v": self.number}).encode()


@dataclass
class Span:
    """A time in which processors filled a column.

    Attributes:
        first_spec: the number of the first spec with the column.
        removed_in: the number of the first spec without the column, or None if the newest spec has the column.
        closed: the time up to which windows were closed when the column was removed.
    """

    first_spec: int
    removed_in: int | None = None
    closed: int | None = None

    def is_complete(self, writers: set[int], row_end: int) -> bool:
        """Return whether the column certainly has all values that these specs wrote to a row."""
        if not all(self.first_spec <= w and (self.removed_in is None or w < self.removed_in) for w in writers):
            return False
        return self.removed_in is None or (self.closed is not None and row_end <= self.closed)


@dataclass
class Model:
    """A naive model of the pipeline.

    Attributes:
        rows: the records of each stored row, each with the number of the spec that wrote it.
        spans: the times in which each column was filled.
        closed: the time up to which windows of each aggregation are closed.
    """

    rows: dict[str, dict[tuple[str, int, int], list[tuple[int, Record]]]] = field(
        default_factory=lambda: {name: defaultdict(list) for name in SHAPES}
    )
    spans: dict[str, dict[str, list[Span]]] = field(
        default_factory=lambda: {name: defaultdict(list) for name in SHAPES}
    )
    closed: dict[str, int | None] = field(default_factory=lambda: dict.fromkeys(SHAPES))

    def plan(self, number: int, wanted: dict[str, list[str]]) -> None:
        """Note the metrics of a new spec."""
        for name, metrics in wanted.items():
            columns = {c for m in metrics for c in METRICS[m][2]} | ({"_count"} if metrics else set())
            spans = self.spans[name]
            for column, fills in spans.items():
                if fills[-1].removed_in is None and column not in columns:
                    fills[-1].removed_in, fills[-1].closed = number, self.closed[name]
            for column in columns:
                if not spans[column] or spans[column][-1].removed_in is not None:
                    spans[column].append(Span(number))

    def write(self, writer: int, metrics: dict[str, list[str]], record: Record) -> None:
        """Note a record that a processor of the spec `writer` writes."""
        pane = record.time // MINUTE * MINUTE
        for name, (size, hop) in SHAPES.items():
            if not metrics[name]:
                continue
            closed = self.closed[name]
            missed = closed is not None and pane + hop <= closed
            if missed and closed is not None and pane + size <= closed:
                continue
            after = closed if missed and closed is not None else -(2**62)
            self.rows[name][record.group, pane, after].append((writer, record))

    def whole(self, name: str, metric: str, keys: list[tuple[str, int, int]]) -> bool:
        """Return whether each column of a metric has all values of these rows."""
        return all(
            any(
                span.is_complete({writer for writer, _ in self.rows[name][key]}, key[1] + SHAPES[name][0])
                for span in self.spans[name][column]
            )
            for key in keys
            for column in METRICS[metric][2]
        )

    def answer(self, name: str, metric: str, keys: list[tuple[str, int, int]]) -> Any:
        """Return the exact value of a metric over these rows, or null."""
        if not self.whole(name, metric, keys):
            return None
        records = sorted((r for key in keys for _, r in self.rows[name][key]), key=lambda r: (r.time, r.o))
        values = [r.number for r in records if r.number is not None]
        if metric in ("n", "nv"):
            return len(records if metric == "n" else values)
        if not values:
            return None
        answers: dict[str, Callable[[list[float]], float]] = {
            "sv": math.fsum,
            "av": statistics.fmean,
            "mx": max,
            "fst": lambda v: v[0],
            "va": statistics.pvariance,
        }
        return answers[metric](values)

    def windows(self, name: str) -> dict[tuple[str, int], list[tuple[str, int, int]]]:
        """Return the keys of the rows of each window."""
        size, hop = SHAPES[name]
        windows: dict[tuple[str, int], list[tuple[str, int, int]]] = defaultdict(list)
        for key in self.rows[name]:
            group, pane, after = key
            for start in range(pane - size + hop, pane + 1, hop):
                if start + size > after:
                    windows[group, start].append(key)
        return windows
