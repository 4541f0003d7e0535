"""Benchmark of cached aggregate queries of the API: queries per CPU-second, and latencies at 1,000 queries a second.

    python tests/bench/bench_api.py [--seconds 5] [--connections 32] [--queries 50]

The benchmark fills a pipeline with 48 hours of windows of 40 groups by SQL. One API process answers on loopback, over
kept connections. Client processes send plain HTTP requests over asyncio streams.

The first run is a closed loop: each connection sends the next query after the answer to its last one. The result is
the rate by wall time and by CPU time of the API. The target is about CPU time, because the clients share the machine.
The second run is an open loop at half the target. Its latencies begin when a query is due, and include queueing.
The API reads expired answers from Postgres again (cacheTtl 5 s), as in production.
"""

from __future__ import annotations

import argparse
import asyncio
import concurrent.futures
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx
import uvloop
from rich.console import Console
from rich.table import Table
from shared.support import Cpu, Pipeline, await_condition, free_port, peak_rss_mib

from tidemill_operator.laptop.servers import start_servers

TARGET_PER_SECOND, TARGET_P99_MS = 2_000, 20.0
HOURS, GROUPS = 48, 40
BASE = 1_700_000_000_000 // 3_600_000 * 3_600_000
SPEC: dict[str, Any] = {
    "source": {
        "topic": {"partitions": 1},
        "fields": [
            {"name": "ts", "type": "timestamp", "required": True},
            {"name": "page", "type": "string", "required": True},
            {"name": "latency", "type": "number"},
        ],
        "eventTime": {"field": "ts"},
    },
    "aggregations": [
        {
            "name": "by_page",
            "groupBy": ["page"],
            "window": {"type": "tumbling", "size": "1h"},
            "metrics": [
                {"name": "views", "function": "count"},
                {"name": "mean", "function": "avg", "field": "latency"},
                {"name": "slowest", "function": "max", "field": "latency"},
            ],
        }
    ],
    "auth": {"required": False},
}


@dataclass(frozen=True)
class Figures:
    """The results of one kind of query. Rates are in queries a second, latencies in milliseconds.

    Attributes:
        load_average: Load average of the machine over the minute before. If it exceeds the number of cores, other
            work was running.
    """

    query: str
    rows: int
    answer_bytes: int
    per_second: float
    per_cpu_second: float
    half_load_per_second: float
    p50_ms: float
    p99_ms: float
    peak_rss_mib: float
    load_average: float

    @property
    def on_target(self) -> bool:
        """Whether both targets are met."""
        return self.per_cpu_second >= TARGET_PER_SECOND and self.p99_ms < TARGET_P99_MS


def fill(pipeline: Pipeline) -> None:
    """Insert windows of all groups and hours into the table."""
    with pipeline.connect() as connection:
        for day in range(HOURS // 24 + 2):
            connection.execute(
                f"SELECT {pipeline.schema}.ensure_partition('by_page_v1', %s, 1)", (BASE // 86_400_000 + day,)
            )
        connection.execute(
            f"INSERT INTO {pipeline.schema}.by_page_v1"
            " (page, window_start, _rev, _count, _n_latency, _sum_latency, _max_latency)"
            " SELECT '/page/' || g, to_timestamp(%s / 1000.0) + h * interval '1 hour', 1, 100 + g, 100 + g, h * 1.25, g"
            f" FROM generate_series(1, {GROUPS}) AS g, generate_series(0, {HOURS - 1}) AS h",
            (BASE,),
        )


async def _answer(reader: asyncio.StreamReader) -> int:
    """Read an answer, and return its status."""
    head = await reader.readuntil(b"\r\n\r\n")
    lower = head.lower()
    at = lower.index(b"content-length: ") + 16
    await reader.readexactly(int(lower[at : lower.index(b"\r\n", at)]))
    return int(head[9:12])


async def _connection(
    port: int, requests: list[bytes], offset: int, until: float, interval: float | None
) -> tuple[int, int, list[float]]:
    """Send queries over a connection until `until`. Return the number of answers, of failures, and the latencies."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    answered, failed, latencies = 0, 0, []
    due = time.monotonic() + (interval or 0.0) * (offset % 97) / 97
    try:
        while True:
            now = time.monotonic()
            if interval is not None:
                if due > now:
                    await asyncio.sleep(due - now)
                started, due = due, due + interval
            else:
                started = now
            if started >= until:
                return answered, failed, latencies
            writer.write(requests[(offset + answered) % len(requests)])
            status = await _answer(reader)
            latencies.append(time.monotonic() - started)
            answered, failed = answered + 1, failed + (status != 200)
    finally:
        writer.close()


def client(
    port: int, targets: list[str], connections: int, seconds: float, rate: float | None
) -> tuple[int, int, list[float]]:
    """Run a client process, and return the answers, failures and latencies of all its connections."""
    requests = [f"GET {target} HTTP/1.1\r\nHost: bench\r\nAccept: */*\r\n\r\n".encode() for target in targets]
    interval = None if rate is None else connections / rate

    async def all_connections() -> tuple[int, int, list[float]]:
        until = time.monotonic() + seconds
        results = await asyncio.gather(
            *(_connection(port, requests, 31 * n, until, interval) for n in range(connections))
        )
        latencies = [latency for result in results for latency in result[2]]
        return sum(result[0] for result in results), sum(result[1] for result in results), latencies

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(all_connections())


def drive(
    pool: concurrent.futures.Executor, clients: int, port: int, targets: list[str], connections: int, seconds: float,
    rate: float | None = None,
) -> tuple[float, list[float]]:  # fmt: skip
    """Run all client processes at once. Return the answers a second and the sorted latencies.

    Raises:
        RuntimeError: The status of an answer was not 200.
    """
    each = connections // clients
    started = time.monotonic()
    futures = [
        pool.submit(client, port, targets, each, seconds, None if rate is None else rate / clients)
        for _ in range(clients)
    ]
    results = [future.result(seconds + 60) for future in futures]
    elapsed = time.monotonic() - started
    if failed := sum(result[1] for result in results):
        raise RuntimeError(f"the status of {failed} answers is not 200")
    latencies = sorted(latency for result in results for latency in result[2])
    return sum(result[0] for result in results) / elapsed, latencies


def measure(
    pool: concurrent.futures.Executor, options: argparse.Namespace, pid: int, port: int, name: str, targets: list[str]
) -> Figures:
    """Run the closed and the open loop with one kind of query."""
    with httpx.Client(base_url=f"http://127.0.0.1:{port}") as session:
        sample = [session.get(target) for target in targets]
    assert all(answer.status_code == 200 for answer in sample), sample[0].text
    drive(pool, options.clients, port, targets, options.connections, 1.0)
    cpu, load_average = Cpu(pid), os.getloadavg()[0]
    begin = cpu.seconds()
    per_second, _ = drive(pool, options.clients, port, targets, options.connections, options.seconds)
    used = cpu.seconds() - begin
    half = TARGET_PER_SECOND / 2
    reached, latencies = drive(pool, options.clients, port, targets, options.connections, options.seconds, half)
    return Figures(
        query=name,
        rows=len(sample[0].json()["data"]),
        answer_bytes=len(sample[0].content),
        per_second=per_second,
        per_cpu_second=per_second * options.seconds / used,
        half_load_per_second=reached,
        p50_ms=latencies[len(latencies) // 2] * 1000,
        p99_ms=latencies[int(len(latencies) * 0.99)] * 1000,
        peak_rss_mib=peak_rss_mib(pid),
        load_average=load_average,
    )


def table(figures: list[Figures]) -> Table:
    """Return the figures as a table."""
    table = Table(title="Cached aggregate queries, one API process")
    for heading in (
        "query",
        "rows",
        "kB",
        "queries/s",
        "per CPU-second",
        "half load/s",
        "p50 ms",
        "p99 ms",
        "MiB",
        "target",
    ):
        table.add_column(heading, justify="left" if heading == "query" else "right")
    for f in figures:
        table.add_row(
            f.query, f"{f.rows:,}", f"{f.answer_bytes / 1000:.1f}", f"{f.per_second:,.0f}", f"{f.per_cpu_second:,.0f}",
            f"{f.half_load_per_second:,.0f}", f"{f.p50_ms:.2f}", f"{f.p99_ms:.2f}", f"{f.peak_rss_mib:.0f}",
            "[green]met[/]" if f.on_target else "[bold red]MISSED[/]",
        )  # fmt: skip
    return table


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5.0, help="duration of each loop")
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--clients", type=int, default=2, help="client processes")
    parser.add_argument("--queries", type=int, default=50, help="number of different queries, sent in turn")
    parser.add_argument("--output", type=Path, default=Path("build/bench-api.json"))
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="tidemill-bench-"))
    folder.chmod(0o755)
    servers = start_servers(folder / "servers", durable=False, on_progress=lambda text: print(text, file=sys.stderr))
    figures = []
    try:
        pipeline = Pipeline(servers, folder, "views", SPEC)
        fill(pipeline)
        port = free_port()
        base = f"/v1/pipelines/{pipeline.name}/aggregates/by_page"
        kinds = {
            "one group, 24 windows": [f"{base}?page=/page/{n % GROUPS + 1}&limit=24" for n in range(options.queries)],
            "all groups of an hour": [
                f"{base}?from={BASE + n % HOURS * 3_600_000}&limit=40" for n in range(options.queries)
            ],
            "roll-up to days": [f"{base}?granularity=1d&group_by=&limit={n + 1}" for n in range(options.queries)],
        }
        spawn = multiprocessing.get_context("spawn")
        with (
            pipeline.run("tidemill_api", port) as process,
            concurrent.futures.ProcessPoolExecutor(options.clients, mp_context=spawn) as pool,
        ):
            await_condition(lambda: _healthy(port), seconds=60, interval=0.2)
            for name, targets in kinds.items():
                figures.append(measure(pool, options, process.pid, port, name, targets))
    finally:
        servers.stop()
        shutil.rmtree(folder, ignore_errors=True)
    console = Console(width=120)
    console.print(table(figures))
    met = all(f.on_target for f in figures)
    goal = f"{TARGET_PER_SECOND:,} queries per CPU-second, p99 below {TARGET_P99_MS:g} ms at half of that"
    if busy := [f for f in figures if f.load_average > (os.cpu_count() or 1)]:
        load = max(f.load_average for f in busy)
        console.print(
            f"[yellow]The machine was busy with other work (load average {load:.1f}); latencies are not reliable.[/]"
        )
    console.print(f"[green]Target met[/]: {goal}" if met else f"[bold red]UNDER TARGET[/]: {goal}")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    rows = [{**asdict(f), "on_target": f.on_target} for f in figures]
    options.output.write_text(json.dumps(rows, indent=1))
    return 0 if met else 1


def _healthy(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/health").status_code == 200
    except httpx.TransportError:
        return False


if __name__ == "__main__":
    sys.exit(main())
