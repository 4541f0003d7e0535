"""Runs of engines that follow a topic at a steady rate: latency of results, and recovery after a SIGKILL."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import polars as pl
from bench_catch_up import OWN, Bench, end_process, prepared
from shared.job import (
    FLUSH,
    Comparison,
    Results,
    compare,
    make_topic,
    pipeline_spec,
    read_plain,
    read_tidemill,
    recomputed,
    right,
)
from shared.pace import Pace
from shared.support import Pipeline

FAST = "tidemill-50ms"
"""Tidemill with a flushInterval of 50 ms. Only runs at a steady rate include it."""
FOLLOW = {"rate": 5_000, "keys": 100, "window_ms": 1_000, "grace_ms": 1_000}
START_SECONDS, WARM_SECONDS, MEASURED_SECONDS, RECOVERY_SECONDS = 60.0, 5.0, 20.0, 90.0


@dataclass(frozen=True)
class Followed:
    """The figures of a run at a steady rate. Latencies and recovery are in seconds. None: no result in time."""

    engine: str
    reached_rate: float
    results: int
    p50: float | None
    p99: float | None
    recovery: float | None
    comparison: Comparison
    load_average: float


def follow(bench: Bench, engine: str) -> Followed:
    """Run an engine at a steady rate, and kill it once."""
    name = bench.name(engine)
    topic, window_ms, grace_ms = f"bench.pace-{name}", FOLLOW["window_ms"], FOLLOW["grace_ms"]
    make_topic(bench.servers.kafka, topic, 4)
    start: Callable[[], subprocess.Popen[Any]]
    if engine in (*OWN, FAST):
        spec = pipeline_spec(
            topic, window_ms=window_ms, disorder_ms=0, grace_ms=grace_ms,
            flush_interval="50ms" if engine == FAST else None,
        )  # fmt: skip
        pipeline = Pipeline(bench.servers, bench.folder, name, spec)
        out, read = pipeline.config.topic("results"), read_tidemill
        # A restarted replica keeps its name, as in a cluster.
        start = lambda: pipeline.start("tidemill_processor", extra={"TIDEMILL_INSTANCE": name})  # noqa: E731
    else:
        out, environment = prepared(bench, name, topic, 4, window_ms, grace_ms)
        read, peer, log = read_plain, bench.peers[engine], bench.folder / f"{name}.log"
        start = lambda: peer.start(environment, log, follow=True)  # noqa: E731
    return _follow(bench, engine, topic, Results(bench.servers.kafka, out, read), start)


def _follow(
    bench: Bench, engine: str, topic: str, results: Results, start: Callable[[], subprocess.Popen[Any]]
) -> Followed:
    load, own_ms = os.getloadavg()[0], FOLLOW["window_ms"] + FOLLOW["grace_ms"]
    seconds = START_SECONDS + WARM_SECONDS + MEASURED_SECONDS + RECOVERY_SECONDS
    process = start()
    pace = Pace(bench.servers.kafka, topic, rate=FOLLOW["rate"], seconds=seconds, keys=FOLLOW["keys"], every=10**9)
    frames: list[pl.DataFrame] = []

    def take_until(clock_ms: float, enough: Callable[[pl.DataFrame], bool] = lambda frame: False) -> None:
        while time.time() * 1000 < clock_ms:
            frames.append(results.take(0.2))
            if enough(frames[-1]):
                return

    try:
        # Engines start at different speeds, and first process the events that were written meanwhile.
        take_until(time.time() * 1000 + START_SECONDS * 1000, lambda frame: not frame.is_empty())
        measured_from = (time.time() + WARM_SECONDS) * 1000
        take_until(measured_from + MEASURED_SECONDS * 1000)
        process.kill()
        killed = time.time() * 1000
        process.wait()
        process = start()
        newer = pl.col("start") + own_ms > killed
        take_until(killed + RECOVERY_SECONDS * 1000, lambda frame: not frame.filter(newer).is_empty())
        take_until(time.time() * 1000 + 5_000)
        pace.stop()
        paced = pace.result()
        expected = recomputed(paced.events, FOLLOW["window_ms"])
        silent = 0
        while silent < 20 and sum(f.filter(pl.col("page") != FLUSH).height for f in frames) < expected.height:
            frames.append(results.take(1.0))
            silent = 0 if frames[-1].height else silent + 1
        frames.append(results.rest())
    finally:
        end_process(process)
        results.close()
    frame = pl.concat(frames).filter(pl.col("page") != FLUSH).with_columns(due=pl.col("start") + own_ms)
    between = pl.col("due").is_between(measured_from, killed - 2_000)
    first = frame.sort("at").unique(["page", "start"], keep="first")  # after the kill, engines repeat some results
    delays = first.filter(between).select(pl.col("at") - pl.col("due")).to_series() / 1000
    after = right(expected, frame).filter((pl.col("due") > killed) & (pl.col("at") > killed))["at"].min()
    return Followed(
        engine,
        paced.rate,
        delays.len(),
        delays.quantile(0.5, "nearest"),
        delays.quantile(0.99, "nearest"),
        (float(after) - killed) / 1000 if isinstance(after, int) else None,
        compare(expected, frame.drop("at", "due")),
        load,
    )
