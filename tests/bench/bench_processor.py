"""Kafka → windows in Postgres: Tidemill's processor beside Quix Streams' own tumbling window, same topic, same run.

    python tests/bench/bench_processor.py [--events 1000000] [--keys 1000,50000] [--no-quix]

The job: JSON events of a page view, 4 partitions; per page and 1-minute tumbling window count, sum, min and max of a
latency. The topic is full before an engine starts. CPU is user + system from /proc: Tidemill's from the first commit to
the last, its Postgres' beside it; Quix's from its first record to its last result. Tidemill's windows are compared with
a batch recomputation; it does everything it does in production (offsets, closing, publishing of results).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import polars as pl
import psycopg
from bench_support import Cpu, Pipeline, await_condition, peak_rss_mib
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from tidemill_operator.servers import Servers, start_servers

PARTITIONS = 4
BASE = 1_763_900_000_000 // 60_000 * 60_000


@dataclass(frozen=True)
class Figures:
    """One engine's run. CPU in seconds, RSS in MiB."""

    engine: str
    keys: int
    events: int
    cpu_seconds: float
    postgres_cpu_seconds: float
    wall_seconds: float
    peak_rss_mib: float
    exact: bool

    @property
    def rate(self) -> float:
        """Events per CPU-second of the engine's own process."""
        return self.events / self.cpu_seconds

    @property
    def rate_with_postgres(self) -> float:
        """Events per CPU-second, Postgres' CPU counted too."""
        return self.events / (self.cpu_seconds + self.postgres_cpu_seconds)


def spec(*, publish: bool) -> dict[str, Any]:
    """The job as a pipeline's spec."""
    return {
        "results": {"publish": publish},
        "source": {
            "topic": {"partitions": PARTITIONS},
            "fields": [
                {"name": "ts", "type": "timestamp", "required": True},
                {"name": "page", "type": "string", "required": True},
                {"name": "user_id", "type": "string"},
                {"name": "latency_ms", "type": "number"},
                {"name": "country", "type": "string"},
            ],
            "eventTime": {"field": "ts", "maxDisorder": "2s"},
        },
        "aggregations": [
            {
                "name": "by_page",
                "groupBy": ["page"],
                "window": {"type": "tumbling", "size": "1m", "grace": "5s"},
                "metrics": [
                    {"name": "n", "function": "count"},
                    {"name": "total", "function": "sum", "field": "latency_ms"},
                    {"name": "low", "function": "min", "field": "latency_ms"},
                    {"name": "high", "function": "max", "field": "latency_ms"},
                ],
            }
        ],
    }


def fill(brokers: str, topic: str, events: int, keys: int) -> pl.DataFrame:
    """Fill the topic; the expected windows. The last event of each partition pushes every window shut."""
    rnd = random.Random(events + keys).random
    producer = Producer({
        "bootstrap.servers": brokers, "linger.ms": 20, "batch.size": 262_144, "queue.buffering.max.messages": 500_000,
        "partitioner": "murmur2_random", "acks": "all",
    })  # fmt: skip
    times, pages, values = [], [], []
    for i in range(events):
        ts, page, value = BASE + i * 5 - int(rnd() * 2000), f"/p{int(rnd() * keys)}", round(1 + 400 * rnd() * rnd(), 3)
        record = b'{"ts": %d, "page": "%s", "user_id": "u%d", "latency_ms": %s, "country": "DE"}' % (
            ts, page.encode(), int(rnd() * 100_000), repr(value).encode(),
        )  # fmt: skip
        while True:
            try:
                producer.produce(topic, record, key=page)
                break
            except BufferError:
                producer.poll(0.05)
        if i % 5_000 == 0:
            producer.poll(0)
        times.append(ts)
        pages.append(page)
        values.append(value)
    flush = {"ts": BASE + events * 5 + 600_000, "page": "/flush", "latency_ms": 1.0}
    for partition in range(PARTITIONS):
        producer.produce(topic, json.dumps(flush), key="/flush", partition=partition)
    producer.flush()
    frame = pl.DataFrame({"ts": times, "page": pages, "v": values})
    return frame.group_by("page", start=pl.col("ts") // 60_000 * 60_000).agg(
        n=pl.len(), total=pl.col("v").sum(), low=pl.col("v").min(), high=pl.col("v").max()
    )


def run_tidemill(servers: Servers, pipeline: Pipeline, events: int, keys: int, expected: pl.DataFrame) -> Figures:
    """One run of the processor, measured from outside."""
    total = events + PARTITIONS
    postgres = Cpu(servers.handles["postgres"].pid)
    with pipeline.connect() as connection, pipeline.run("tidemill_processor") as process:
        query = f"SELECT coalesce(sum(consumed), 0)::bigint FROM {pipeline.schema}._offsets"
        cpu = Cpu(process.pid)

        def consumed() -> int:
            row = connection.execute(query).fetchone()
            return int(row[0]) if row else 0

        first = await_condition(consumed, seconds=60, interval=0.01)
        begin = cpu.seconds(), postgres.seconds(), time.monotonic()
        await_condition(lambda: consumed() >= total, seconds=300, interval=0.05)
        end = cpu.seconds(), postgres.seconds(), time.monotonic()
        rss = peak_rss_mib(process.pid)
        exact = compare(connection, pipeline.schema, expected)
    return Figures(
        "tidemill", keys, total - first, end[0] - begin[0], end[1] - begin[1], end[2] - begin[2], rss, exact,
    )  # fmt: skip


def compare(connection: psycopg.Connection[Any], schema: str, expected: pl.DataFrame) -> bool:
    """Whether the windows equal the recomputation: counts, min, max exactly, sums within 1e-9."""
    rows = connection.execute(
        "SELECT page, (extract(epoch FROM window_start) * 1000)::bigint, _count, _sum_latency_ms, _min_latency_ms,"
        " _max_latency_ms"
        f" FROM {schema}.by_page_v1 WHERE page <> '/flush'"
    ).fetchall()
    got = pl.DataFrame(rows, schema=["page", "start", "n", "total", "low", "high"], orient="row")
    both = expected.join(got, on=["page", "start"], how="full", suffix="_got")
    same = both.filter(
        (pl.col("n") == pl.col("n_got")) & (pl.col("low") == pl.col("low_got")) & (pl.col("high") == pl.col("high_got"))
        & (((pl.col("total") - pl.col("total_got")) / pl.col("total")).abs() < 1e-9)
    )  # fmt: skip
    return same.height == both.height == expected.height


def run_quix(servers: Servers, folder: Path, topic: str, events: int, keys: int, results: int, limit: float) -> Figures:
    """One run of Quix' window, until all results have come out or the time limit; incomplete counts as not exact."""
    out = f"{topic}.quix"
    kafka = AdminClient({"bootstrap.servers": servers.kafka})
    kafka.create_topics([NewTopic(out, PARTITIONS, 1)])[out].result(30)
    env = {
        **os.environ,
        "BROKER": servers.kafka,
        "IN": topic,
        "OUT": out,
        "GROUP": f"quix-{topic}",
        "STATE": str(folder / f"state-{keys}"),
    }
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("quix_window.py"))],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    watch = Consumer({"bootstrap.servers": servers.kafka, "group.id": f"watch-{topic}"})
    try:
        assert process.stdout is not None
        begin_cpu = float(process.stdout.readline().split()[1])
        begin, cpu = time.monotonic(), Cpu(process.pid)

        def published() -> int:
            return sum(
                watch.get_watermark_offsets(TopicPartition(out, p), timeout=5, cached=False)[1]
                for p in range(PARTITIONS)
            )

        count, last = 0, (begin_cpu, begin)
        while count < results and time.monotonic() - begin < limit:
            time.sleep(0.2)
            if (now := published()) > count:
                count, last = now, (cpu.seconds(), time.monotonic())
        return Figures(
            "quix", keys, events, last[0] - begin_cpu, 0.0, last[1] - begin, peak_rss_mib(process.pid), count >= results
        )
    finally:
        process.terminate()
        process.wait(30)
        watch.close()


def table(figures: list[Figures]) -> str:
    """The figures as text."""
    lines = [
        f"{'engine':10} {'keys':>7} {'events/CPU-s':>13} {'with Postgres':>14} {'events/s':>10}"
        f" {'CPU s':>7} {'RSS MiB':>8}  exact"
    ]
    for f in figures:
        lines.append(
            f"{f.engine:10} {f.keys:>7,} {f.rate:>13,.0f} {f.rate_with_postgres:>14,.0f}"
            f" {f.events / f.wall_seconds:>10,.0f} {f.cpu_seconds:>7.1f} {f.peak_rss_mib:>8,.0f}"
            f"  {'yes' if f.exact else 'NO / incomplete'}"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--keys", default="1000,50000")
    parser.add_argument("--no-quix", action="store_true")
    parser.add_argument("--no-results", action="store_true", help="do not publish closed windows to the results topic")
    parser.add_argument("--output", type=Path, default=Path("build/bench-processor.json"))
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="tidemill-bench-"))
    folder.chmod(0o755)
    servers = start_servers(folder / "servers", durable=True, on_progress=lambda text: print(text, file=sys.stderr))
    figures: list[Figures] = []
    try:
        for keys in (int(k) for k in options.keys.split(",")):
            pipeline = Pipeline(servers, folder, f"views-{keys}", spec(publish=not options.no_results))
            topic = pipeline.config.events_topic
            print(f"filling {topic} with {options.events:,} events", file=sys.stderr)
            expected = fill(servers.kafka, topic, options.events, keys)
            figures.append(run_tidemill(servers, pipeline, options.events, keys, expected))
            print(table(figures[-1:]), file=sys.stderr)
            if not options.no_quix:
                figures.append(run_quix(servers, folder, topic, options.events, keys, expected.height, 400))
    finally:
        servers.stop()
        shutil.rmtree(folder, ignore_errors=True)
    print(table(figures))
    for keys in sorted({f.keys for f in figures if f.engine == "quix"}):
        ours, theirs = (next(f for f in figures if f.keys == keys and f.engine == e) for e in ("tidemill", "quix"))
        print(f"{keys:,} keys: {ours.rate / theirs.rate:.1f} times Quix' events per CPU-second")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    rows = [{**asdict(f), "events_per_cpu_second": f.rate, "with_postgres": f.rate_with_postgres} for f in figures]
    options.output.write_text(json.dumps(rows, indent=1))
    return 0 if all(f.exact for f in figures if f.engine == "tidemill") else 1


if __name__ == "__main__":
    sys.exit(main())
