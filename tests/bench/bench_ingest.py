"""Benchmark of ingest, from HTTP to Kafka (acks=all): events a second of one process, and their CPU time.

    python tests/bench/bench_ingest.py [--seconds 15] [--batch 1000] [--clients 2] [--connections 4]

Several client processes send NDJSON batches of page views (4 partitions, keyed) on keep-alive connections. They write
prepared requests to sockets, and read the answers. CPU is user + system time of the ingest process from /proc, without
the clients and Kafka. Afterwards, the topic's end offsets are compared with the number of acknowledged events. A
second, short run under cProfile shows the functions in which the event loop spends its time.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import pstats
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from confluent_kafka import Consumer, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic
from rich.console import Console
from rich.table import Table
from shared.support import Cpu, await_condition, free_port, peak_rss_mib

from tidemill_contract.resource.spec import PipelineSpec
from tidemill_contract.runtime import AggregationRef, PipelineConfig
from tidemill_operator.laptop.servers import Servers, start_servers

PARTITIONS = 4
TARGET = 40_000
"""Events per CPU-second of the ingest process, at batches of 1,000."""
PROFILE_SECONDS = 4.0
_STARTING = ("<built-in method builtins.compile>", "<built-in method marshal.loads>")
NAMESPACE, NAME = "bench", "views"


@dataclass(frozen=True)
class Figures:
    """The figures of a run. Times are in seconds, latencies of requests in milliseconds, RSS in MiB.

    Attributes:
        complete: Whether the topic has as many records as events were acknowledged.
    """

    batch: int
    connections: int
    events: int
    wall_seconds: float
    cpu_seconds: float
    p50_ms: float
    p99_ms: float
    peak_rss_mib: float
    complete: bool

    @property
    def per_second(self) -> float:
        """Acknowledged events per second of wall time."""
        return self.events / self.wall_seconds

    @property
    def per_cpu_second(self) -> float:
        """Acknowledged events per second of CPU time of the ingest process."""
        return self.events / self.cpu_seconds


def pipeline() -> PipelineConfig:
    """Return a pipeline of page views with the page as their key."""
    spec = PipelineSpec.model_validate(
        {
            "source": {
                "topic": {"partitions": PARTITIONS},
                "fields": [
                    {"name": "ts", "type": "timestamp", "required": True},
                    {"name": "page", "type": "string", "required": True},
                    {"name": "user_id", "type": "string"},
                    {"name": "latency_ms", "type": "number"},
                    {"name": "country", "type": "string"},
                ],
                "key": "page",
                "eventTime": {"field": "ts"},
            },
            "aggregations": [
                {
                    "name": "by_page",
                    "groupBy": ["page"],
                    "window": {"type": "tumbling", "size": "1m"},
                    "metrics": [{"name": "n", "function": "count"}],
                }
            ],
            "auth": {"required": False},
        }
    )
    aggregations = (AggregationRef(name="by_page"),)
    return PipelineConfig(namespace=NAMESPACE, name=NAME, generation=1, spec=spec, aggregations=aggregations)


def request(batch: int, seed: int) -> bytes:
    """Return an HTTP request with `batch` events."""
    rnd = random.Random(seed)
    now = int(time.time() * 1000)
    lines = [
        json.dumps({
            "ts": now - rnd.randrange(2000), "page": f"/p{rnd.randrange(1000)}", "country": "DE",
            "user_id": f"u{rnd.randrange(100_000)}", "latency_ms": round(rnd.random() * 400, 3),
        })
        for _ in range(batch)
    ]  # fmt: skip
    body = "\n".join(lines).encode()
    head = (
        f"POST /v1/pipelines/{NAME}/events HTTP/1.1\r\nHost: ingest\r\nContent-Type: application/x-ndjson\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def drive(port: int, batch: int, connections: int, seconds: float, seed: int) -> tuple[int, list[float]]:
    """Send requests from a client process. Return the acknowledged events and the latencies in seconds."""

    def run(number: int) -> tuple[int, list[float]]:
        requests = [request(batch, seed * 1000 + number * 10 + i) for i in range(4)]
        accepted, latencies = 0, []
        end = time.monotonic() + seconds
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while (began := time.monotonic()) < end:
                connection.sendall(requests[len(latencies) % len(requests)])
                accepted += read_accepted(connection)
                latencies.append(time.monotonic() - began)
        return accepted, latencies

    with ThreadPoolExecutor(connections) as pool:
        results = list(pool.map(run, range(connections)))
    return sum(accepted for accepted, _ in results), [latency for _, latencies in results for latency in latencies]


def read_accepted(connection: socket.socket) -> int:
    """Read an answer, and return its number of accepted events.

    Raises:
        RuntimeError: The status is not 200.
    """
    data = b""
    while b"\r\n\r\n" not in data:
        data += receive(connection)
    head, _, body = data.partition(b"\r\n\r\n")
    length = next(int(h[15:]) for h in head.lower().split(b"\r\n") if h.startswith(b"content-length:"))
    while len(body) < length:
        body += receive(connection)
    if not head.startswith(b"HTTP/1.1 200"):
        raise RuntimeError(f"{head.splitlines()[0].decode()}: {body[:300].decode()}")
    return int(json.loads(body)["accepted"])


def receive(connection: socket.socket) -> bytes:
    """Return the next bytes of a connection.

    Raises:
        RuntimeError: Ingest has closed the connection.
    """
    data = connection.recv(65536)
    if not data:
        raise RuntimeError("ingest has closed the connection")
    return data


@contextlib.contextmanager
def run_ingest(servers: Servers, folder: Path, *, profile: Path | None = None) -> Iterator[tuple[int, int]]:
    """Start an ingest process, and end it with the block. Yield its pid and port."""
    port = free_port()
    environment = {
        **os.environ,
        "TIDEMILL_NAMESPACE": NAMESPACE,
        "TIDEMILL_CONFIG_DIR": str(folder / "pipelines"),
        "TIDEMILL_SECRETS_DIR": str(folder / "secrets"),
        "TIDEMILL_KAFKA_BROKERS": servers.kafka,
        "TIDEMILL_PORT": str(port),
        # The limits are checked as usual, but never reached.
        "TIDEMILL_INGEST_EVENTS_PER_SECOND": "1e9",
        "TIDEMILL_INGEST_BYTES_PER_SECOND": "1e12",
    }
    profiler = ["-m", "cProfile", "-o", str(profile)] if profile else []
    with (folder / "ingest.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, *profiler, "-m", "tidemill_ingest"], env=environment, stdout=log, stderr=log
        )

    def ready() -> bool:
        assert process.poll() is None, (folder / "ingest.log").read_text()
        with contextlib.suppress(OSError):
            return urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5).status == 200
        return False

    try:
        await_condition(ready, seconds=30, interval=0.1)
        yield process.pid, port
    finally:
        process.terminate()
        process.wait(30)


def load(port: int, options: argparse.Namespace, batch: int, seconds: float) -> tuple[int, list[float]]:
    """Send requests from several client processes at the same time."""
    with multiprocessing.get_context("spawn").Pool(options.clients) as pool:
        work = [(port, batch, options.connections, seconds, seed) for seed in range(options.clients)]
        results = pool.starmap(drive, work)
    return sum(accepted for accepted, _ in results), [latency for _, latencies in results for latency in latencies]


def measure(servers: Servers, folder: Path, options: argparse.Namespace, batch: int) -> Figures:
    """Run ingest under load with one size of batches."""
    before = ends(servers.kafka)
    with run_ingest(servers, folder) as (pid, port):
        warm, _ = load(port, options, batch, 1.0)
        cpu = Cpu(pid)
        began = cpu.seconds()
        events, latencies = load(port, options, batch, options.seconds)
        spent, rss = cpu.seconds() - began, peak_rss_mib(pid)
    latencies.sort()
    complete = ends(servers.kafka) - before == warm + events
    p50, p99 = (latencies[len(latencies) * percent // 100] * 1000 for percent in (50, 99))
    return Figures(
        batch=batch, connections=options.clients * options.connections, events=events, wall_seconds=options.seconds,
        cpu_seconds=spent, p50_ms=p50, p99_ms=p99, peak_rss_mib=rss, complete=complete,
    )  # fmt: skip


def ends(brokers: str) -> int:
    """Return the number of records in the events topic."""
    consumer = Consumer({"bootstrap.servers": brokers, "group.id": "bench"})
    places = [TopicPartition(pipeline().events_topic, partition) for partition in range(PARTITIONS)]

    def ask() -> list[int]:
        with contextlib.suppress(KafkaException):  # A new topic has no leaders yet.
            return [consumer.get_watermark_offsets(place, timeout=10, cached=False)[1] for place in places]
        return []

    try:
        return sum(await_condition(ask, seconds=30, interval=0.1))
    finally:
        consumer.close()


def profile(servers: Servers, folder: Path, options: argparse.Namespace) -> list[tuple[str, float]]:
    """Return the functions in which a loaded ingest process spends most time, and their shares."""
    output = folder / "profile"
    with run_ingest(servers, folder, profile=output) as (_, port):
        load(port, options, options.batch, PROFILE_SECONDS)
    stats: dict[Any, Any] = pstats.Stats(str(output)).stats  # type: ignore[attr-defined]
    # The entry `run` of the event loop is time in which it waits. Compiling and importing belong to the start.
    seconds_by_function = {key: row[2] for key, row in stats.items() if key[2] not in ("run", *_STARTING)}
    total = sum(seconds_by_function.values())
    top = sorted(seconds_by_function.items(), key=lambda item: -item[1])[:8]
    return [(f"{Path(at[0]).name} {at[2]}" if at[1] else at[2], seconds / total) for at, seconds in top]


def show(console: Console, figures: list[Figures], shares: list[tuple[str, float]], batch: int) -> bool:
    """Print the figures, and return whether the target is met."""
    table = Table(title="Ingest: HTTP to Kafka, acks=all, one process")
    for column in ("batch", "clients", "events/s", "events/CPU-s", "p50 ms", "p99 ms", "RSS MiB", "in Kafka"):
        table.add_column(column, justify="right", no_wrap=True)
    for f in figures:
        table.add_row(
            f"{f.batch:,}", str(f.connections), f"{f.per_second:,.0f}", f"{f.per_cpu_second:,.0f}", f"{f.p50_ms:.1f}",
            f"{f.p99_ms:.1f}", f"{f.peak_rss_mib:,.0f}", "yes" if f.complete else "NO",
        )  # fmt: skip
    console.print(table)
    rate = next(f.per_cpu_second for f in figures if f.batch == batch)
    met = rate >= TARGET
    verdict = "[green]met[/green]" if met else "[red]NOT met[/red]"
    console.print(f"target, {TARGET:,} events per CPU-second at {batch:,} events a request: {verdict} ({rate:,.0f})")
    if shares:
        console.print("time of the event loop: " + ", ".join(f"{name} {share:.0%}" for name, share in shares))
    return met


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--batch", type=int, default=1000, help="events a request, in the run with the target")
    parser.add_argument("--other-batches", default="100,1", help="sizes of batches in additional runs")
    parser.add_argument("--clients", type=int, default=2, help="client processes")
    parser.add_argument("--connections", type=int, default=4, help="connections of each client process")
    parser.add_argument("--no-profile", action="store_true")
    parser.add_argument("--output", type=Path, default=Path("build/bench-ingest.json"))
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="tidemill-bench-"))
    folder.chmod(0o755)
    servers = start_servers(folder / "servers", needs=("kafka",), on_progress=lambda text: print(text, file=sys.stderr))
    try:
        config = pipeline()
        (folder / "pipelines").mkdir()
        (folder / "pipelines" / f"{NAME}.json").write_text(config.to_json())
        kafka = AdminClient({"bootstrap.servers": servers.kafka})
        kafka.create_topics([NewTopic(config.events_topic, PARTITIONS, 1)])[config.events_topic].result(30)
        batches = [options.batch, *(int(text) for text in options.other_batches.split(",") if text)]
        figures = [measure(servers, folder, options, batch) for batch in batches]
        shares = [] if options.no_profile else profile(servers, folder, options)
    finally:
        servers.stop()
        shutil.rmtree(folder, ignore_errors=True)
    met = show(Console(width=110), figures, shares, options.batch)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    rows = [
        {**asdict(f), "events_per_second": f.per_second, "events_per_cpu_second": f.per_cpu_second} for f in figures
    ]
    report = {"target_events_per_cpu_second": TARGET, "target_met": met, "runs": rows, "profile": dict(shares)}
    options.output.write_text(json.dumps(report, indent=1))
    return 0 if all(f.complete for f in figures) else 1


if __name__ == "__main__":
    sys.exit(main())
