"""Benchmark of latency: time from Kafka's acknowledgement of an event until a query counts the event.

    python tests/bench/bench_latency.py [--rate 50000] [--seconds 20] [--flush 500ms,100ms,50ms]

A process writes events at a steady rate. One in 500 events is timed. Its time of acknowledgement is that of the
producing client. The benchmark queries `_offsets` in Postgres every few milliseconds. One transaction commits a batch's
rows and positions. So an event is queryable exactly when the position of its partition has passed the event. The run
checks this once a second with a statement that reads both the positions and the windows. An event's latency ends when
the answer to the query arrives. CPU is that of the processor and of Postgres, without the benchmark's session.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from bisect import bisect_left
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import polars as pl
import psycopg
from bench_tidemill import Meter, consumed
from rich.console import Console
from rich.table import Table
from shared.job import compare, make_topic, pipeline_spec, recomputed, windows_in_postgres
from shared.pace import Pace, Paced
from shared.support import Pipeline, await_condition

from tidemill_operator.laptop.servers import Servers, start_servers

LOOK_SECONDS = 0.005
WARM_SECONDS = 5.0
PARTITIONS, KEYS, EVERY = 4, 1_000, 500


@dataclass(frozen=True)
class Figures:
    """The figures of a run. Latencies are in milliseconds.

    Attributes:
        reached_rate: Events a second that the generator wrote.
        p50_ms, p99_ms, greatest_ms: Latencies from the acknowledgement of an event.
        produced_p50_ms, produced_p99_ms: Latencies from the call that produced the event.
        processor_cores, postgres_cores: CPU-seconds a second.
        proofs: Number of checks in which positions and windows had the same number of events.
        load_average: Load average of the machine over the minute before.
    """

    flush_interval: str
    reached_rate: float
    samples: int
    p50_ms: float
    p99_ms: float
    greatest_ms: float
    produced_p50_ms: float
    produced_p99_ms: float
    processor_cores: float
    postgres_cores: float
    proofs: int
    exact: bool
    load_average: float


class Observer:
    """An observer of the positions in Postgres.

    Attributes:
        seen: Positions of each partition, and the times of the answers that had them first.
        proofs: Number of successful checks.
    """

    def __init__(self, connection: psycopg.Connection[Any], pipeline: Pipeline) -> None:
        self._connection, self._schema = connection, pipeline.schema
        self.seen: dict[int, tuple[list[int], list[float]]] = {p: ([], []) for p in range(PARTITIONS)}
        self.proofs = 0

    def look(self) -> None:
        """Query the positions, and note the time of the answer."""
        rows = self._connection.execute(
            f"SELECT partition, next_offset FROM {self._schema}._offsets WHERE reader = 'live'"
        ).fetchall()
        at = time.monotonic()
        for partition, position in rows:
            positions, times = self.seen[partition]
            if position is not None and (not positions or position > positions[-1]):
                positions.append(position)
                times.append(at)

    def prove(self) -> None:
        """Check that windows contain as many events as positions have passed.

        Raises:
            AssertionError: The numbers are different.
        """
        row = self._connection.execute(
            f"SELECT (SELECT coalesce(sum(next_offset), 0) FROM {self._schema}._offsets WHERE reader = 'live'),"
            f" (SELECT coalesce(sum(_count), 0) FROM {self._schema}.by_page_v1)"
        ).fetchone()
        assert row is not None
        assert row[0] == row[1], f"positions have passed {row[0]} events, windows contain {row[1]}"
        self.proofs += 1

    def visible(self, partition: int, offset: int) -> float:
        """Return the time of the first answer that included an event."""
        positions, times = self.seen[partition]
        return times[bisect_left(positions, offset + 1)]


def measure(servers: Servers, folder: Path, options: argparse.Namespace, flush: str) -> Figures:
    """Run the processor with a flushInterval."""
    topic, load = f"bench.latency-{flush}", os.getloadavg()[0]
    make_topic(servers.kafka, topic, PARTITIONS)
    spec = pipeline_spec(topic, disorder_ms=0, flush_interval=flush)
    pipeline = Pipeline(servers, folder, f"latency-{flush}", spec)
    with pipeline.connect() as connection, pipeline.run("tidemill_processor") as process:
        seconds = WARM_SECONDS + options.seconds
        pace = Pace(servers.kafka, topic, rate=options.rate, seconds=seconds, keys=KEYS, every=EVERY)
        began, observer = time.monotonic(), Observer(connection, pipeline)
        meter = Meter.of(servers, [process.pid], [connection])

        def observe(until: float) -> None:
            proven = time.monotonic()
            while time.monotonic() < until:
                observer.look()
                if time.monotonic() - proven > 1.0:
                    observer.prove()
                    proven = time.monotonic()
                time.sleep(LOOK_SECONDS)

        observe(began + WARM_SECONDS)
        begin = meter.read()
        observe(began + seconds - 0.5)
        used = [after - before for after, before in zip(meter.read(), begin, strict=True)]
        paced = _paced(pace, observer)
        await_condition(
            lambda: consumed(connection, pipeline) >= paced.events.height + PARTITIONS, seconds=120, interval=0.1
        )  # fmt: skip
        observer.look()
        comparison = compare(recomputed(paced.events, 60_000), windows_in_postgres(connection, pipeline.schema))
    # The last second is left out, because the events that close the windows follow.
    chosen = [s for s in paced.samples if began + WARM_SECONDS <= s.produced <= began + seconds - 1.0]
    visible = [observer.visible(s.partition, s.offset) for s in chosen]
    acknowledged = pl.Series([at - s.acknowledged for at, s in zip(visible, chosen, strict=True)]) * 1000
    produced = pl.Series([at - s.produced for at, s in zip(visible, chosen, strict=True)]) * 1000

    def quantile(values: pl.Series, share: float) -> float:
        return float(values.quantile(share, "nearest") or 0.0)

    took = options.seconds - 0.5
    return Figures(
        flush, paced.rate, len(chosen), quantile(acknowledged, 0.5), quantile(acknowledged, 0.99),
        quantile(acknowledged, 1.0), quantile(produced, 0.5), quantile(produced, 0.99), used[0] / took, used[1] / took,
        observer.proofs, comparison.exact, load,
    )  # fmt: skip


def _paced(pace: Pace, observer: Observer) -> Paced:
    """Observe positions until the generator has ended, and return its events."""
    while not pace.finished():
        observer.look()
        time.sleep(LOOK_SECONDS)
    return pace.result()


def table(figures: list[Figures]) -> Table:
    """Return the figures as a table."""
    table = Table(
        "flushInterval", "events/s", "p50 ms", "p99 ms", "greatest", "from produce: p50", "p99", "processor cores",
        "Postgres cores", "exact", "load", title="From acknowledged event to queryable row", title_justify="left",
    )  # fmt: skip
    for f in figures:
        table.add_row(
            f.flush_interval, f"{f.reached_rate:,.0f}", f"{f.p50_ms:.0f}", f"{f.p99_ms:.0f}", f"{f.greatest_ms:.0f}",
            f"{f.produced_p50_ms:.0f}", f"{f.produced_p99_ms:.0f}", f"{f.processor_cores:.2f}",
            f"{f.postgres_cores:.2f}", "yes" if f.exact else "[red]NO[/]", f"{f.load_average:.1f}",
        )  # fmt: skip
    for column in table.columns[1:]:
        column.justify = "right"
    return table


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=int, default=50_000, help="events a second")
    parser.add_argument("--seconds", type=float, default=20.0, help="measured seconds of each run")
    parser.add_argument(
        "--flush", default="500ms,100ms,50ms", help="flushIntervals; the default of a pipeline is 500ms"
    )
    parser.add_argument("--output", type=Path, default=Path("build/bench-latency.json"))
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="tidemill-bench-"))
    folder.chmod(0o755)
    servers = start_servers(folder / "servers", durable=True, on_progress=lambda text: print(text, file=sys.stderr))
    figures: list[Figures] = []
    try:
        for flush in options.flush.split(","):
            figures.append(measure(servers, folder, options, flush))
            Console(stderr=True, width=140).print(table(figures[-1:]))
    finally:
        servers.stop()
        shutil.rmtree(folder, ignore_errors=True)
    Console(width=140).print(table(figures))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps([asdict(f) for f in figures], indent=1))
    return 0 if all(f.exact for f in figures) else 1


if __name__ == "__main__":
    sys.exit(main())
