"""Benchmark of Tidemill beside other engines, on the same topic and with the same windows.

    python tests/bench/bench_peers.py [--events 1000000] [--keys 1000,50000] [--engines tidemill,flink] [--repeat 1]

All results are compared with a recomputation in one batch.

Catching up: the topic is full before an engine starts. CPU is user + system time of the engine's processes from /proc,
from its first record (Tidemill: its first commit) to its last result. Tidemill's CPU includes Postgres. No engine's CPU
includes the brokers. With several numbers of events (`--events 1000000,4000000`), the output has the steady rate too:
the rate of the events that the long run has more than the short one. It does not include start and compilation.

Following: a generator writes 5,000 events a second of 100 pages. Their event time is the current time. Windows have a
second, and a result is due a second after its window's end. Latency is the time from then to the broker's time of the
result. Then the engine is killed with SIGKILL, and started again at once. Recovery is the time from the kill to the
first right result that was due after the kill.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from bench_catch_up import OWN, Bench, CaughtUp, catch_up_peer, catch_up_tidemill, median, steady_rate
from bench_engines import PEERS, NotRun
from bench_follow import FAST, FOLLOW, Followed, follow
from rich.console import Console
from rich.table import Table
from shared.chart import bars
from shared.job import Job, drawn, drop_topics, fill, make_topic, recomputed

from tidemill_operator.laptop.servers import start_servers


def install(bench: Bench) -> None:
    """Install the chosen engines, or note why this fails."""
    for name in bench.options.engines:
        if name in PEERS:
            print(f"preparing {name}", file=sys.stderr)
            try:
                bench.peers[name] = PEERS[name]()
            except NotRun as error:
                bench.not_run[name] = str(error)


def table_of_runs(runs: list[CaughtUp]) -> Table:
    """Return a table with a row for each run that caught up."""
    table = Table(
        "engine", "keys", "events", "events/CPU-s", "without Postgres'", "events/s", "MiB", "results", "load",
        title="Catching up: one topic, windows of a minute", title_justify="left",
    )  # fmt: skip
    for column in table.columns[1:]:
        column.justify = "right"
    for run in runs:
        done = run.events * run.share
        results = "exact" if run.exact else f"{run.share:.0%} in time" if run.share < 1 else f"[red]{run.comparison}[/]"
        table.add_row(
            run.engine, f"{run.keys:,}", f"{run.events:,}", f"{run.rate:,.0f}", f"{done / (run.cpu_seconds or 1):,.0f}",
            f"{done / (run.wall_seconds or 1):,.0f}", f"{run.peak_rss_mib:,.0f}", results, f"{run.load_average:.1f}",
        )  # fmt: skip
    return table


def table_of_follows(follows: list[Followed]) -> Table:
    """Return a table with a row for each run that followed the topic."""
    table = Table(
        "engine", "p50 s", "p99 s", "recovery s", "missing", "wrong", "repeated", "load",
        title=f"Following {FOLLOW['rate']:,} events/s, windows of a second; a SIGKILL", title_justify="left",
    )  # fmt: skip
    for column in table.columns[1:]:
        column.justify = "right"
    for run in follows:
        times = ("none" if value is None else f"{value:.2f}" for value in (run.p50, run.p99, run.recovery))
        counts = (f"{n:,}" for n in (run.comparison.missing, run.comparison.wrong, run.comparison.repeated))
        table.add_row(run.engine, *times, *counts, f"{run.load_average:.1f}")
    return table


def numbers(text: str) -> list[int]:
    """Parse numbers that are separated by commas."""
    return [int(part) for part in text.split(",")]


def parse_arguments() -> argparse.Namespace:
    """Parse the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    engines = [*OWN, FAST, *PEERS]
    parser.add_argument(
        "--events",
        type=numbers,
        default=[1_000_000],
        help="events of each run; with several numbers, also the steady rate",
    )
    parser.add_argument("--keys", type=numbers, default=[1_000, 50_000])
    parser.add_argument("--engines", type=lambda text: text.split(","), default=engines, help=",".join(engines))
    parser.add_argument("--repeat", type=int, default=1, help="runs of each engine, engines in turns")
    parser.add_argument("--limit", type=float, default=240, help="maximal seconds of catching up")
    parser.add_argument("--no-follow", action="store_true", help="only catching up")
    parser.add_argument("--no-catch-up", action="store_true", help="only following")
    parser.add_argument("--output", type=Path, default=Path("build/bench-peers"), help="of .json and .svg")
    options = parser.parse_args()
    if unknown := set(options.engines) - set(engines):
        parser.error(f"unknown engine: {', '.join(unknown)}; expected names of {', '.join(engines)}")
    return options


def run_all(bench: Bench, runs: list[CaughtUp], follows: list[Followed]) -> None:
    """Run the chosen engines. Append their figures to `runs` and `follows` after each run."""
    options, engines = bench.options, [e for e in bench.options.engines if e in OWN or e in bench.peers]
    jobs = [Job(events, keys) for keys in options.keys for events in sorted(options.events)]
    for job in [] if options.no_catch_up else jobs:
        print(f"filling {job.topic}", file=sys.stderr)
        make_topic(bench.servers.kafka, job.topic, job.partitions)
        fill(bench.servers.kafka, job)
        expected = recomputed(drawn(job), job.window_ms)
        for engine in engines * options.repeat:
            print(f"{engine}: {job.events:,} events, {job.keys:,} keys", file=sys.stderr)
            if engine in OWN:
                runs.append(catch_up_tidemill(bench, engine, job, expected))
            else:
                runs.append(catch_up_peer(bench, bench.peers[engine], job, expected))
            Console(stderr=True, width=130).print(table_of_runs(runs[-1:]))
        drop_topics(bench.servers.kafka, lambda name, mine=job.topic: name == mine)  # type: ignore[misc]
    followers = [e for e in options.engines if e in bench.peers or e in ("tidemill", FAST)]
    for engine in [] if options.no_follow else followers:
        print(f"{engine}: following", file=sys.stderr)
        follows.append(follow(bench, engine))
        Console(stderr=True, width=130).print(table_of_follows(follows[-1:]))


def write(bench: Bench, runs: list[CaughtUp], follows: list[Followed]) -> None:
    """Print the tables. Write the figures as JSON and the chart as SVG."""
    console = Console(width=130)
    if runs:
        console.print(table_of_runs(runs))
    if follows:
        console.print(table_of_follows(follows))
    pairs = dict.fromkeys((run.engine, run.keys) for run in runs)
    steady = {pair: rate for pair in pairs if (rate := steady_rate(runs, *pair)) is not None}
    for (engine, keys), rate in steady.items():
        console.print(f"steady, {engine}, {keys:,} keys: {rate:,.0f} events per CPU-second")
    for engine, reason in bench.not_run.items():
        console.print(f"[yellow]not run: {engine}: {reason}[/]")
    output: Path = bench.options.output
    output.parent.mkdir(parents=True, exist_ok=True)
    record = {
        "engines": {peer.name: peer.description for peer in bench.peers.values()},
        "not_run": bench.not_run,
        "caught_up": [{**asdict(run), "events_per_cpu_second": run.rate, "exact": run.exact} for run in runs],
        "steady": [{"engine": e, "keys": k, "events_per_cpu_second": rate} for (e, k), rate in steady.items()],
        "followed": [asdict(run) for run in follows],
    }
    output.with_suffix(".json").write_text(json.dumps(record, indent=1))
    panels = {}
    for keys in dict.fromkeys(run.keys for run in runs):
        engines = dict.fromkeys(run.engine for run in runs if run.keys == keys)
        panels[f"events per CPU-second, {keys:,} keys"] = {
            e: median([run.rate for run in runs if (run.engine, run.keys) == (e, keys)]) for e in engines
        }
    panels["latency of results, p99, seconds"] = {f.engine: f.p99 for f in follows if f.p99 is not None}
    panels["recovery after SIGKILL, seconds"] = {f.engine: f.recovery for f in follows if f.recovery is not None}
    output.with_suffix(".svg").write_text(bars("Tidemill beside other engines", panels))
    console.print(f"written: {output.with_suffix('.json')}, {output.with_suffix('.svg')}")


def main() -> int:
    options = parse_arguments()
    folder = Path(tempfile.mkdtemp(prefix="tidemill-bench-"))
    folder.chmod(0o755)
    runs: list[CaughtUp] = []
    follows: list[Followed] = []
    servers = start_servers(folder / "servers", durable=True, on_progress=lambda text: print(text, file=sys.stderr))
    bench = Bench(servers, folder, options)
    try:
        install(bench)
        run_all(bench, runs, follows)
    finally:
        servers.stop()
        shutil.rmtree(folder, ignore_errors=True)
        write(bench, runs, follows)
    own = [run.exact for run in runs if run.engine in OWN]
    own += [run.comparison.exact for run in follows if run.engine.startswith("tidemill")]
    return 0 if all(own) else 1


if __name__ == "__main__":
    sys.exit(main())
