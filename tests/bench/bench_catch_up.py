"""Runs of engines over a topic that is full before they start: events per CPU-second, rate, memory and exactness."""

from __future__ import annotations

import argparse
import os
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl
from bench_engines import Peer
from bench_tidemill import Meter, consumed
from shared.job import (
    Comparison,
    Job,
    Results,
    compare,
    drop_topics,
    make_topic,
    pipeline_spec,
    read_plain,
    read_tidemill,
    windows_in_postgres,
)
from shared.support import Cpu, Pipeline, await_condition, peak_rss_mib

from tidemill_operator.laptop.servers import Servers

OWN = ("tidemill", "tidemill-quiet")
"""Tidemill, and Tidemill without published windows. Both write their windows to Postgres."""


@dataclass(frozen=True)
class CaughtUp:
    """The figures of a run over a full topic. CPU time is in seconds, RSS in MiB.

    Attributes:
        events: Number of events that the figures cover.
        share: Share of the expected results that appeared within the time limit. Below 1, the run was stopped.
        load_average: Load average of the machine over the minute before.
    """

    engine: str
    keys: int
    events: int
    cpu_seconds: float
    postgres_cpu_seconds: float
    wall_seconds: float
    peak_rss_mib: float
    share: float
    comparison: Comparison | None
    load_average: float

    @property
    def rate(self) -> float:
        """Events per CPU-second, including Postgres' CPU time.

        In an unfinished run, the events are estimated from the share of its results.
        """
        spent = self.cpu_seconds + self.postgres_cpu_seconds
        return self.events * self.share / spent if spent else 0.0

    @property
    def exact(self) -> bool:
        """Whether all results appeared and are right."""
        return self.comparison is not None and self.comparison.exact


@dataclass
class Bench:
    """Servers, options and engines that all runs share.

    Attributes:
        runs: Number of runs that have started.
        peers: The installed engines, by name.
        not_run: Reasons why engines are not installed, by name.
    """

    servers: Servers
    folder: Path
    options: argparse.Namespace
    runs: int = 0
    peers: dict[str, Peer] = field(default_factory=dict)
    not_run: dict[str, str] = field(default_factory=dict)

    def name(self, engine: str) -> str:
        """Return a unique name for a run."""
        self.runs += 1
        return f"{engine}-{self.runs}"


def catch_up_tidemill(bench: Bench, engine: str, job: Job, expected: pl.DataFrame) -> CaughtUp:
    """Run the processor until all windows are stored and published. Compare both with the expected windows."""
    publish = engine != "tidemill-quiet"
    spec = pipeline_spec(job.topic, partitions=job.partitions, window_ms=job.window_ms, publish=publish)
    pipeline = Pipeline(bench.servers, bench.folder, bench.name(engine), spec)
    load, results = os.getloadavg()[0], None
    if publish:
        results = Results(bench.servers.kafka, pipeline.config.topic("results"), read_tidemill)
    with pipeline.connect() as connection, pipeline.run("tidemill_processor") as process:
        meter = Meter.of(bench.servers, [process.pid], [connection])
        first = await_condition(lambda: consumed(connection, pipeline), seconds=60, interval=0.01)
        begin = *meter.read(), time.monotonic()

        def done() -> bool:
            stored = consumed(connection, pipeline) >= job.total
            return stored and (results is None or results.count() >= expected.height)

        await_condition(done, seconds=bench.options.limit, interval=0.05)
        end = *meter.read(), time.monotonic()
        rss = peak_rss_mib(process.pid)
        comparison = compare(expected, windows_in_postgres(connection, pipeline.schema))
    if results is not None:
        if comparison.exact:
            comparison = compare(expected, results.rest())
        results.close()
    return CaughtUp(
        engine, job.keys, job.total - first, end[0] - begin[0], end[1] - begin[1], end[2] - begin[2], rss, 1.0,
        comparison, load,
    )  # fmt: skip


def catch_up_peer(bench: Bench, peer: Peer, job: Job, expected: pl.DataFrame) -> CaughtUp:
    """Run another engine until all results have appeared or the time is over."""
    name, load = bench.name(peer.name), os.getloadavg()[0]
    out, environment = prepared(bench, name, job.topic, job.partitions, job.window_ms, 5_000)
    results = Results(bench.servers.kafka, out, read_plain)
    process = peer.start(environment, bench.folder / f"{name}.log")
    try:
        mark = first_mark(process, bench.folder / f"{name}.log")
        begin, cpu = time.monotonic(), Cpu(process.pid)
        count, last, rss, ended = 0, (mark, begin), 0.0, False
        while count < expected.height and time.monotonic() - begin < bench.options.limit:
            time.sleep(0.1)
            ended, before = has_ended(process), ended
            seconds, rss = cpu.seconds(), max(rss, peak_rss_mib(process.pid))
            if (now := results.count()) > count:
                count, last = now, (seconds, time.monotonic())
            elif before:
                break
    finally:
        end_process(process)
    if ended and not count:
        raise RuntimeError(f"{name} ended without a result: {(bench.folder / f'{name}.log').read_text()[-2000:]}")
    complete = count >= expected.height
    comparison = compare(expected, results.rest()) if complete else None
    results.close()
    drop_topics(bench.servers.kafka, lambda topic: name in topic)
    return CaughtUp(
        peer.name, job.keys, job.events, last[0] - mark, 0.0, last[1] - begin, rss, min(1.0, count / expected.height),
        comparison, load,
    )  # fmt: skip


def prepared(
    bench: Bench, name: str, topic: str, partitions: int, window_ms: int, grace_ms: int
) -> tuple[str, dict[str, str]]:
    """Create the topic for an engine's results. Return its name and the engine's environment."""
    out = f"bench.{name}.out"
    make_topic(bench.servers.kafka, out, partitions)
    return out, {
        "BROKER": bench.servers.kafka, "IN": topic, "OUT": out, "GROUP": f"bench-{name}",
        "STATE": str(bench.folder / f"state-{name}"), "WINDOW_MS": str(window_ms), "GRACE_MS": str(grace_ms),
    }  # fmt: skip


def first_mark(process: subprocess.Popen[str], log: Path) -> float:
    """Wait for an engine's first record, and return the CPU seconds that it has used until then.

    Raises:
        RuntimeError: The engine ended before its first record.
    """
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("FIRST "):
            return float(line.split()[1])
    raise RuntimeError(f"{process.args!r} ended before its first record: {log.read_text()[-2000:]}")


def end_process(process: subprocess.Popen[Any]) -> None:
    """End a process with SIGTERM; after 15 s, with SIGKILL."""
    process.terminate()
    try:
        process.wait(15)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def has_ended(process: subprocess.Popen[Any]) -> bool:
    """Return whether a process has ended. It is not reaped, so /proc still has its CPU time."""
    return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def steady_rate(runs: list[CaughtUp], engine: str, keys: int) -> float | None:
    """Return the rate of the events that long runs have more than short ones; None without runs of both sizes."""
    mine = [run for run in runs if run.engine == engine and run.keys == keys and run.exact]
    if not mine:
        return None
    short, long = min(mine, key=lambda run: run.events), max(mine, key=lambda run: run.events)
    if long.events < 1.5 * short.events:
        return None

    def spent(size: CaughtUp) -> float:
        same = [run for run in mine if abs(run.events - size.events) < size.events / 4]
        return median([run.cpu_seconds + run.postgres_cpu_seconds for run in same])

    return (long.events - short.events) / (spent(long) - spent(short))


def median(values: list[float]) -> float:
    """Return the median; of two middle values, the lower one."""
    return sorted(values)[(len(values) - 1) // 2]
