"""Detectors over windows that real processors close: what is learnt survives a kill and moves to another process."""

from __future__ import annotations

import json
import math
import random

import pytest

from bench import MakeBench
from tidemill_contract.resource.kinds.detectors import DETECTORS
from tidemill_contract.resource.spec import PipelineSpec
from tidemill_contract.runtime import AggregationRef, PipelineConfig
from tidemill_processor.detect.detectors import State, Verdict, judge

pytestmark = pytest.mark.integration

MINUTE = 60_000
BASE = 1_700_000_000_000 // MINUTE * MINUTE
TYPES = tuple(DETECTORS.by_name)
WINDOWS = 600


def config() -> PipelineConfig:
    rules = [
        {"name": kind, "aggregation": "by_k", "metric": "level", "detector": {"type": kind, "cooldown": "5m"}}
        for kind in TYPES
    ]
    spec = PipelineSpec.model_validate(
        {
            "source": {
                "topic": {"partitions": 1},
                "fields": [
                    {"name": "ts", "type": "timestamp", "required": True},
                    {"name": "k", "type": "string"},
                    {"name": "v", "type": "number"},
                ],
                "eventTime": {"field": "ts", "idleTimeout": "10m", "maxDisorder": "1s"},
            },
            "aggregations": [
                {
                    "name": "by_k",
                    "groupBy": ["k"],
                    "window": {"type": "tumbling", "size": "1m"},
                    "metrics": [{"name": "level", "function": "max", "field": "v"}],
                }
            ],
            "anomalies": rules,
            "processor": {"flushInterval": "100ms"},
        }
    )
    return PipelineConfig(
        namespace="tests", name="detectors", generation=1, spec=spec, aggregations=(AggregationRef(name="by_k"),)
    )


def values(seed: int) -> list[float]:
    """A wave with noise; a spike before the kill, one after it, and a shift of the level."""
    generator = random.Random(seed)
    made = [10 * math.sin(index / 40) + generator.gauss(100, 3) for index in range(WINDOWS)]
    made[280] += 200
    made[430] += 200
    return [value + (40 if 520 <= index < 560 else 0) for index, value in enumerate(made)]


def expected(kind: str, levels: list[float]) -> dict[int, Verdict]:
    """What a detector finds that nothing ever interrupts, by window."""
    state: State = {}
    found = {}
    spec = DETECTORS.make(type=kind, cooldown="5m")
    for index, value in enumerate(levels):
        verdict, state = judge(spec, state, BASE + index * MINUTE, value)
        if verdict is not None:
            found[index] = verdict
    return found


def test_what_is_learnt_survives_kills_and_moves(make_bench: MakeBench) -> None:
    """Every detector finds exactly what one uninterrupted run over the same values finds, with the same figures."""
    bench = make_bench(config())
    levels = {"a": values(1), "b": values(2)}

    def produce(first: int, last: int) -> None:
        bench.produce(
            [
                json.dumps({"ts": BASE + index * MINUTE + 1_000, "k": k, "v": levels[k][index]}).encode()
                for index in range(first, last)
                for k in levels
            ],
            partition=0,
        )
        scanned = "SELECT scanned_until FROM {s}._aggregations"
        bench.eventually(
            lambda: bench.query(scanned)[0][0] == BASE + (last - 1) * MINUTE, seconds=90, what="windows are scanned"
        )

    process = bench.start()
    produce(0, 300)
    process.kill()
    process.wait()
    bench.start(1)
    bench.start(2)
    produce(300, WINDOWS)
    rows = bench.query(
        "SELECT anomaly, group_key ->> 'k', (extract(epoch FROM window_start) * 1000)::bigint, value, score, severity,"
        " expected, lower, upper FROM {s}._anomalies"
    )
    found = {(rule, k, (at - BASE) // MINUTE): Verdict(*figures) for rule, k, at, *figures in rows}
    told = {
        (kind, k, index): verdict
        for kind in TYPES
        for k, series in levels.items()
        for index, verdict in expected(kind, series[: WINDOWS - 1]).items()
    }
    assert found == told
    assert len(found) == len(rows)
    # Something is compared: before and after the kill.
    assert {("auto", "a", 280), ("zscore", "b", 280), ("zscore", "b", 430)} <= set(found)
    (largest,) = bench.query("SELECT max(length(state::text)) FROM {s}._detectors")[0]
    assert largest < 8_000
