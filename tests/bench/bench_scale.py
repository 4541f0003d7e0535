"""Benchmark of the processor's cost by replicas, keys, partitions, aggregations, functions and detectors on events.

    python tests/bench/bench_scale.py [--parts replicas,keys,partitions,aggregations,functions,watching]
                                      [--events 1000000] [--replicas 1,2,4] [--keys 1000,10000,100000,1000000]
                                      [--partitions 1,4,16,64] [--aggregations 1,4,8,16]
                                      [--functions none,count,distinct,topk] [--watching none,zscore,auto]

In each run, the processors get the partitions of an empty topic, and are stopped with SIGSTOP. Then the topic is
filled, and the processors continue. The run ends when all events are in Postgres and all results in Kafka. CPU is user
+ system time of all replicas and of Postgres. The results are compared with a recomputation.

One value varies at a time. The others are 1 replica, 4 partitions, 1,000 keys, 1 aggregation and windows of a minute.

- Replicas vary at 1,000 keys, and at 10 keys that all replicas share.
- Keys vary with windows of six hours, so that one window contains all keys.
- Functions are those of one more metric over 99,991 users, at 1,000 keys and at 10.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from itertools import count
from pathlib import Path

from bench_tidemill import Meter, consumed, frozen, greatest_rss_mib
from rich.console import Console
from rich.table import Table
from shared.job import (
    Job,
    Results,
    compare,
    drawn,
    drop_topics,
    fill,
    make_topic,
    pipeline_spec,
    read_tidemill,
    recomputed,
    windows_in_postgres,
)
from shared.support import Pipeline, await_condition

from tidemill_operator.laptop.servers import Servers, start_servers

PARTS = ("replicas", "keys", "partitions", "aggregations", "functions", "watching")
LONG_MS = 6 * 3_600_000
_NUMBERS = count()


@dataclass(frozen=True)
class Figures:
    """The figures of a run.

    Attributes:
        part: The value that varies.
        cpu_seconds: CPU time of all replicas until all results were in Kafka.
        postgres_cpu_seconds: CPU time of Postgres until then.
        wall_seconds: Time until all events were in Postgres.
        peak_rss_mib: Maximal RSS of the largest replica, in MiB.
    """

    part: str
    replicas: int
    keys: int
    partitions: int
    aggregations: int
    events: int
    windows: int
    cpu_seconds: float
    postgres_cpu_seconds: float
    wall_seconds: float
    peak_rss_mib: float
    exact: bool
    load_average: float

    @property
    def rate(self) -> float:
        """Events per CPU-second, including Postgres' CPU time."""
        return self.events / (self.cpu_seconds + self.postgres_cpu_seconds)


def measure(
    servers: Servers, folder: Path, part: str, job: Job, *, replicas: int = 1, aggregations: int = 1,
    function: str | None = None, watching: str | None = None,
) -> Figures:  # fmt: skip
    """Run the processors over a job, and return the figures."""
    load = os.getloadavg()[0]
    make_topic(servers.kafka, job.topic, job.partitions)
    spec = pipeline_spec(
        job.topic, partitions=job.partitions, window_ms=job.window_ms, aggregations=aggregations, function=function,
        watching=watching,
    )  # fmt: skip
    pipeline = Pipeline(servers, folder, f"scale-{next(_NUMBERS)}", spec)
    expected = recomputed(drawn(job), job.window_ms)
    results = Results(servers.kafka, pipeline.config.topic("results"), read_tidemill)
    windows = expected.height * aggregations
    with pipeline.connect() as connection, frozen(pipeline, replicas, job.partitions) as (pids, wake):
        print(f"{part}: filling {job.topic}", file=sys.stderr)
        fill(servers.kafka, job)
        meter = Meter.of(servers, pids, [connection])
        begin, began = meter.read(), time.monotonic()
        wake()
        await_condition(lambda: consumed(connection, pipeline) >= job.total, seconds=600, interval=0.05)
        stored = time.monotonic() - began
        await_condition(lambda: results.count() >= windows, seconds=600, interval=0.05)
        end = meter.read()
        rss = greatest_rss_mib(pids)
        tables = ["by_page_v1", *(f"by_page_{n}_v1" for n in range(2, aggregations + 1))]
        exact = all(
            compare(expected, windows_in_postgres(connection, pipeline.schema, name)).exact for name in tables
        )  # fmt: skip
    results.close()
    with pipeline.connect() as connection:
        # The writes of later runs must not wait for a vacuum of this run's rows.
        connection.execute(f"DROP SCHEMA {pipeline.schema} CASCADE")
    drop_topics(servers.kafka, lambda name: name == job.topic or pipeline.name in name)
    return Figures(
        part, replicas, job.keys, job.partitions, aggregations, job.events, windows,
        end[0] - begin[0], end[1] - begin[1], stored, rss, exact, load,
    )  # fmt: skip


def run(servers: Servers, folder: Path, options: argparse.Namespace, figures: list[Figures]) -> None:
    """Run the chosen parts. Append the figures of each run to `figures`."""
    for part in options.parts.split(","):
        for value in getattr(options, part).split(","):
            for figures_of_run in runs(partial(measure, servers, folder), part, value, options.events):
                figures.append(figures_of_run)
                Console(stderr=True, width=140).print(table([figures_of_run]))


def runs(measure: Callable[..., Figures], part: str, value: str, events: int) -> Iterator[Figures]:
    """Run the jobs with a value of a part, and yield their figures."""
    plain = Job(events, 1_000)
    match part:
        case "replicas":
            for job in (plain, Job(events, 10)):
                yield measure(part, job, replicas=int(value))
        case "keys":
            yield measure(part, Job(events, int(value), window_ms=LONG_MS, step_ms=1))
        case "partitions":
            yield measure(part, Job(events, 1_000, partitions=int(value)))
        case "aggregations":
            yield measure(part, plain, aggregations=int(value))
        case "watching":
            yield measure(f"detector {value}", plain, watching=None if value == "none" else value)
        case _:
            for job in (plain, Job(events, 10)):
                yield measure(value, job, function=None if value == "none" else value)


def table(figures: list[Figures]) -> Table:
    """Return the figures as a table."""
    table = Table(
        "varied", "replicas", "keys", "partitions", "aggregations", "windows", "events/CPU-s",
        "without Postgres'", "events/s", "MiB", "exact", "load",
        title=", ".join({f"{f.events:,} events" for f in figures}),
    )  # fmt: skip
    for column in table.columns[1:]:
        column.justify = "right"
    for f in figures:
        table.add_row(
            f.part, f"{f.replicas}", f"{f.keys:,}", f"{f.partitions}", f"{f.aggregations}",
            f"{f.windows:,}", f"{f.rate:,.0f}", f"{f.events / f.cpu_seconds:,.0f}", f"{f.events / f.wall_seconds:,.0f}",
            f"{f.peak_rss_mib:,.0f}", "yes" if f.exact else "[red]NO[/]", f"{f.load_average:.1f}",
        )  # fmt: skip
    return table


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--events", type=int, default=1_000_000, help="events of each run")
    parser.add_argument("--replicas", default="1,2,4")
    parser.add_argument("--keys", default="1000,10000,100000,1000000")
    parser.add_argument("--partitions", default="1,4,16,64")
    parser.add_argument("--aggregations", default="1,4,8,16", help="a pipeline may have up to 16")
    parser.add_argument(
        "--functions", default="none,count,distinct,topk", help="functions of one more metric over user_id"
    )
    parser.add_argument("--watching", default="none,zscore,auto", help="types of detectors on single events")
    parser.add_argument("--output", type=Path, default=Path("build/bench-scale.json"))
    options = parser.parse_args()
    if unknown := set(options.parts.split(",")) - set(PARTS):
        parser.error(f"unknown part: {', '.join(sorted(unknown))}; expected names of {', '.join(PARTS)}")
    folder = Path(tempfile.mkdtemp(prefix="tidemill-bench-"))
    folder.chmod(0o755)
    servers = start_servers(folder / "servers", durable=True, on_progress=lambda text: print(text, file=sys.stderr))
    figures: list[Figures] = []
    try:
        run(servers, folder, options, figures)
    finally:
        servers.stop()
        shutil.rmtree(folder, ignore_errors=True)
    Console(width=140).print(table(figures))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps([{**asdict(f), "events_per_cpu_second": f.rate} for f in figures], indent=1))
    return 0 if all(f.exact for f in figures) else 1


if __name__ == "__main__":
    sys.exit(main())
