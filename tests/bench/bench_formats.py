"""Benchmark of formats: events per CPU-second of Tidemill, and of Flink SQL where it can read the same topic.

Each row has a topic that is full before an engine starts. Both engines compute windows of a minute: count, sum, min and
max of a latency by page. All results are compared with a recomputation: Tidemill's in Postgres and in Kafka, Flink's in
Kafka. CPU is user + system time of all processes of an engine from /proc, from its first record (Tidemill: first
commit) to its last result. Tidemill's CPU includes Postgres. Flink's CPU includes Postgres if Flink reads a table.

A Java program compiles its code during the first seconds. With several numbers of events, the output therefore has the
steady rate too. It is the rate of the events that the largest topic has more than the smallest.

Examples:
  make bench-formats
      all rows, both engines, 1,000,000 events each
  make bench-formats ARGS="--only flat,avro,csv"
      only these rows; ratios need the row `flat`
  make bench-formats ARGS="--only flat,avro --events 1000000,4000000 --repeat 3"
      also the steady rate; three runs each, rows and engines in turns, and their medians
  make bench-formats ARGS="--engines tidemill --output build/formats-of-tidemill"
      only Tidemill; needs neither a JDK nor Maven
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

import psycopg
from bench_catch_up import Bench, median
from bench_engines import NotRun, Peer, flink_sql
from bench_formats_runs import STAGE_FOLDER, Filled, Measured, fill_topic, run_flink, run_tidemill
from bench_peers import numbers
from rich.console import Console
from rich.table import Table
from shared.job import Job, drawn, drop_topics, make_topic
from shared.support import NAMESPACE
from shared.written import ROWS, TIERS, USERS, Needs, Written, drawn_events

from running.schema_registry import SchemaRegistry, running_registry
from tidemill_operator.laptop.servers import start_servers

ENGINES = ("tidemill", "flink")
"""The engines in the order of the table."""


def show(text: str) -> None:
    """Print progress to standard error."""
    print(text, file=sys.stderr, flush=True)


def parse_arguments() -> argparse.Namespace:
    """Parse the options."""
    rows = "\n".join(f"  {name:13}{written.description}" for name, written in ROWS.items())
    parser = argparse.ArgumentParser(
        prog="bench_formats.py",
        description=__doc__,
        epilog=f"rows:\n{rows}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = lambda text: text.split(",")  # noqa: E731
    parser.add_argument("--only", type=names, default=list(ROWS), metavar="ROW,…", help="rows (all)")
    parser.add_argument(
        "--engines", type=names, default=list(ENGINES), metavar="ENGINE,…", help="tidemill, flink (both)"
    )
    parser.add_argument("--events", type=numbers, default=[1_000_000], metavar="N,…", help="in each topic (1000000)")
    parser.add_argument("--keys", type=int, default=1_000, help="pages (%(default)s)")
    parser.add_argument("--repeat", type=int, default=1, help="runs of each pair, rows in turns (%(default)s)")
    parser.add_argument("--limit", type=float, default=600, help="seconds that a run may take (%(default)s)")
    parser.add_argument("--output", type=Path, default=Path("build/bench-formats"), help="of .json (%(default)s)")
    options = parser.parse_args()
    for option, chosen, names_of in (("--only", options.only, ROWS), ("--engines", options.engines, ENGINES)):
        if unknown := [name for name in chosen if name not in names_of]:
            parser.error(f"{option}: unknown: {', '.join(unknown)}; expected names of {', '.join(names_of)}")
    if wrong := [number for number in options.events if number < 10 or number % 10]:
        parser.error(f"--events: {wrong[0]}: expected a multiple of 10")
    return options


class Formats:
    """The benchmark: its topics, its engines and its figures."""

    def __init__(self, bench: Bench, registry: SchemaRegistry) -> None:
        self._bench, self._registry = bench, registry
        self._options = bench.options
        self.measured: list[Measured] = []
        self.not_run: dict[str, str] = {name: ROWS[name].why_not for name in self._options.only if ROWS[name].why_not}
        self.descriptions: dict[str, str] = {}
        self._peers: dict[bool, Peer] = {}

    def install(self) -> None:
        """Install Flink for the rows that need it, or note why this fails."""
        if "flink" not in self._options.engines:
            return
        rows = [name for name in self._options.only if name not in self.not_run]
        for python in sorted({ROWS[name].python for name in rows}):
            show(f"preparing Flink{' with functions in Python' if python else ''}")
            try:
                self._peers[python] = flink_sql(functions=python)
                self.descriptions["flink"] = self._peers[python].description
            except NotRun as error:
                self.not_run |= {name: f"not installed: {error}" for name in rows if ROWS[name].python == python}

    def run(self) -> None:
        """Fill the topics, and run the engines in turns."""
        options = self._options
        jobs = [Job(events, options.keys) for events in sorted(set(options.events))]
        filled = [self._filled(row, ROWS[row], job) for job in jobs for row in options.only]
        turns = [(each, engine) for each in filled for engine in self._engines(each.row)] * options.repeat
        for number, (each, engine) in enumerate(turns, 1):
            show(f"[{number}/{len(turns)}] {each.row}, {each.job.events:,} events: {engine}")
            try:
                self.measured.append(self._once(each, engine))
                Console(stderr=True, width=130).print(self.table(self.measured[-1:]))
            except RuntimeError as error:
                if engine == "tidemill":
                    raise
                show(f"  {error}")
                self.not_run[each.row] = str(error).splitlines()[0][:200]
        drop_topics(self._bench.servers.kafka, lambda name: name in {each.topic for each in filled})

    def _engines(self, row: str) -> list[str]:
        return [e for e in self._options.engines if e == "tidemill" or row not in self.not_run]

    def _filled(self, row: str, written: Written, job: Job) -> Filled:
        at, schema = self._bench.servers.postgres, written.schema
        number = self._registry.register(f"{row}-value", schema) if schema else 0
        address = f"jdbc:postgresql://{at.host}:{at.port}/{at.database}"
        needs = Needs(self._registry.url, number, address, (at.user, at.password))
        topic = f"{NAMESPACE}.format-{row}-{job.events}"
        make_topic(self._bench.servers.kafka, topic, job.partitions)
        events = drawn_events(drawn(job))
        expected = written.expected(events, job.window_ms)
        show(f"filling the topic of {row}: {job.events:,} events")
        records = fill_topic(self._bench, row, written, job=job, topic=topic, events=events, number=number)
        return Filled(row, written, job, topic, records, expected, needs)

    def _once(self, filled: Filled, engine: str) -> Measured:
        if engine == "flink":
            return run_flink(self._bench, self._peers[filled.written.python], filled)
        folder = self._bench.folder / "lookup"
        environment = {
            "TIDEMILL_STAGE_DIR": str(STAGE_FOLDER), "TIDEMILL_LOOKUP_DIRS": json.dumps({"users": str(folder)}),
        }  # fmt: skip
        return run_tidemill(self._bench, filled, environment)

    def rate(self, row: str, engine: str, *, steady: bool = False) -> float | None:
        """Return the median rate of a row in the largest topic, or its steady rate; None without enough exact runs."""
        runs = [run for run in self.measured if (run.row, run.engine) == (row, engine) and run.exact]
        long = [run for run in runs if run.size == max(self._options.events)]
        if not steady:
            return median([run.rate for run in long]) if long else None
        short = [run for run in runs if run.size == min(self._options.events)]
        if not long or not short:
            return None
        spent = [median([run.cpu_seconds for run in group]) for group in (long, short)]
        events = [median([float(run.events) for run in group]) for group in (long, short)]
        return (events[0] - events[1]) / (spent[0] - spent[1]) if spent[0] > spent[1] else None

    def table(self, runs: list[Measured]) -> Table:
        """Return a table with a line for each run."""
        table = Table("row", "engine", "events", "events/CPU-s", "CPU s", "wall s", "results", "load")
        for column in table.columns[2:]:
            column.justify = "right"
        for run in runs:
            results = "exact" if run.exact else f"{run.share:.0%} in time" if run.share < 1 else f"{run.comparison}"
            table.add_row(
                run.row, run.engine, f"{run.size:,}", f"{run.rate:,.0f}", f"{run.cpu_seconds:.1f}",
                f"{run.wall_seconds:.1f}", results, f"{run.load_average:.1f}",
            )  # fmt: skip
        return table

    def summary(self, *, steady: bool) -> Table:
        """Return a table with rates, ratios to flat JSON and ratios to Flink, by row."""
        title = f"Events per CPU-second, {'steady rate' if steady else f'{max(self._options.events):,} events'}"
        table = Table("row", "Tidemill", "of flat", "Flink", "of flat", "Tidemill / Flink", title=title)
        for column in table.columns[1:]:
            column.justify = "right"
        flat = {engine: self.rate("flat", engine, steady=steady) for engine in ENGINES}
        for row in self._options.only:
            own, other = (self.rate(row, engine, steady=steady) for engine in ENGINES)
            cells = [
                cell
                for engine, rate in zip(ENGINES, (own, other), strict=True)
                for cell in ("" if rate is None else f"{rate:,.0f}", _share(rate, flat[engine]))
            ]
            table.add_row(row, *cells, "" if not own or not other else f"{own / other:.2f}")
        return table

    def write(self) -> None:
        """Print the tables, and write the figures as JSON."""
        console = Console(width=130)
        if self.measured:
            console.print(self.table(self.measured))
            console.print(self.summary(steady=False))
            if len(set(self._options.events)) > 1:
                console.print(self.summary(steady=True))
        for row, reason in self.not_run.items() if "flink" in self._options.engines else ():
            console.print(f"[yellow]Flink, {row}: {reason}[/]")
        output: Path = self._options.output.with_suffix(".json")
        output.parent.mkdir(parents=True, exist_ok=True)
        runs = [{**asdict(run), "events_per_cpu_second": run.rate, "exact": run.exact} for run in self.measured]
        record = {"engines": self.descriptions, "not_run": self.not_run, "keys": self._options.keys, "runs": runs}
        output.write_text(json.dumps(record, indent=1))
        console.print(f"written: {output}")


def _share(rate: float | None, flat: float | None) -> str:
    return "" if not rate or not flat else f"{rate / flat:.0%}"


def make_users(bench: Bench) -> None:
    """Create the table of the row `lookup`, and the file with its address in place of a Secret."""
    at = bench.servers.postgres
    uri = f"postgresql://{at.user}:{at.password}@{at.host}:{at.port}/{at.database}"
    with psycopg.connect(uri, autocommit=True) as connection:
        connection.execute("CREATE TABLE bench_users (user_id text PRIMARY KEY, tier text NOT NULL)")
        connection.execute(
            "INSERT INTO bench_users SELECT 'u' || i, 't' || mod(i, %s) FROM generate_series(0, %s) AS i",
            (TIERS, USERS - 1),
        )
    folder = bench.folder / "lookup"
    folder.mkdir()
    (folder / "uri").write_text(uri)


def main() -> int:
    options = parse_arguments()
    folder = Path(tempfile.mkdtemp(prefix="tidemill-bench-"))
    folder.chmod(0o755)
    servers = start_servers(folder / "servers", durable=True, on_progress=show)
    with running_registry() as registry:
        formats = Formats(Bench(servers, folder, options), registry)
        try:
            make_users(Bench(servers, folder, options))
            formats.install()
            formats.run()
        finally:
            servers.stop()
            shutil.rmtree(folder, ignore_errors=True)
            formats.write()
    return 0 if all(run.exact for run in formats.measured if run.engine == "tidemill") else 1


if __name__ == "__main__":
    sys.exit(main())
