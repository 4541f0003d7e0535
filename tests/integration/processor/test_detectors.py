"""Tests of detectors over closed windows, with real processors on a real Kafka and Postgres.

The state of a detector survives a kill, and another process continues with it.
"""

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
    """Return a sine wave with noise, a spike before the kill, a spike after the kill, and a shift of the level."""
    generator = random.Random(seed)
    wave = [10 * math.sin(index / 40) + generator.gauss(100, 3) for index in range(WINDOWS)]
    wave[280] += 200
    wave[430] += 200
    return [value + (40 if 520 <= index < 560 else 0) for index, value in enumerate(wave)]


def expected(kind: str, levels: list[float]) -> dict[int, Verdict]:
    """Return the verdicts of a detector that judges all values without an interruption, by the index of the window."""
    state: State = {}
    verdicts = {}
    spec = DETECTORS.make(type=kind, cooldown="5m")
    for index, value in enumerate(levels):
        verdict, state = judge(spec, state, BASE + index * MINUTE, value)
        if verdict is not None:
            verdicts[index] = verdict
    return verdicts


def test_killed_and_added_processors_do_not_change_the_anomalies(make_bench: MakeBench) -> None:
    """Each detector finds the same anomalies, with equal figures, as an uninterrupted run over the same values."""
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
    anomalies = {(rule, k, (at - BASE) // MINUTE): Verdict(*figures) for rule, k, at, *figures in rows}
    wanted = {
        (kind, k, index): verdict
        for kind in TYPES
        for k, series in levels.items()
        for index, verdict in expected(kind, series[: WINDOWS - 1]).items()
    }
    assert anomalies == wanted
    assert len(anomalies) == len(rows)
    # There are anomalies before and after the kill.
    assert {("auto", "a", 280), ("zscore", "b", 280), ("zscore", "b", 430)} <= set(anomalies)
    (largest,) = bench.query("SELECT max(length(state::text)) FROM {s}._detectors")[0]
    assert largest < 8_000
