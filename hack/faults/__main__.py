"""`make faults` and `make soak`: plays named faults, or random faults for some minutes, and prints a table."""

from __future__ import annotations

import argparse
import datetime as dt
import random
import secrets
import sys
import time
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path

from rich.console import Console

from demo.course import command, in_folder
from demo.runtime import DemoError
from faults import table
from faults.bench import Bench, running_bench
from faults.checker import Outcome
from faults.play import Observations, play_row, unmet_expectations, wait_until_counted
from faults.rows import ROWS, Row


def _line(row: Row, observed: Observations, before: tuple[int, ...], outcome: Outcome, bench: Bench) -> table.Line:
    """Return the line of a played row, with the counts since the row began."""
    now = _counts(outcome, bench)
    sent, acknowledged, counted, dead = (after - earlier for after, earlier in zip(now, before, strict=True))
    return table.Line(
        row, observed, outcome, sent, acknowledged, counted, dead, unmet_expectations(row, observed, outcome)
    )


def _counts(outcome: Outcome | None, bench: Bench) -> tuple[int, ...]:
    sums = (bench.acknowledged.sent, bench.acknowledged.count)
    return (*sums, outcome.counted, outcome.dead) if outcome else (*sums, 0, 0)


def _plan(arguments: argparse.Namespace, console: Console) -> Iterator[tuple[Row, float]]:
    """Yield the named rows (by default all). With minutes, yield the named rows, and then random rows."""
    names = arguments.rows.split(",") if arguments.rows else [] if arguments.minutes else list(ROWS)
    yield from ((ROWS[name], arguments.seconds) for name in names)
    if not arguments.minutes:
        return
    seed = arguments.seed if arguments.seed is not None else secrets.randbelow(1_000_000)
    console.print(f"soak with SEED={seed}")
    drawn, ends = random.Random(seed), time.monotonic() + arguments.minutes * 60
    names = sorted(row.name for row in ROWS.values() if not row.small_disk)
    while time.monotonic() < ends:
        yield ROWS[drawn.choice(names)], drawn.uniform(5.0, arguments.seconds)


def _run(arguments: argparse.Namespace, console: Console, folder: Path) -> int:
    """Play all rows, and return the exit code. Rows with a small disk get separate servers."""
    lines: list[table.Line] = []
    about = table.describe_machine(dt.datetime.now(dt.UTC))
    console.print(table.markdown_head(), highlight=False, markup=False)
    for small_disk, plan in groupby(_plan(arguments, console), lambda planned: planned[0].small_disk):
        with running_bench(folder / f"after-{len(lines)}", small_disk=small_disk) as bench:
            for line in _play_rows(bench, plan, events=arguments.events):
                lines.append(line)
                console.print(table.markdown_row(line.cells()), highlight=False, markup=False)
                table.save_line(arguments.output / "faults.json", line, about=about)
    console.print(f"{sum(line.sent for line in lines):,} events in {len(lines)} rows; {about}", highlight=False)
    if arguments.page:
        table.update_page(arguments.page, arguments.output / "faults.json")
    wrong = [line.row.name for line in lines if line.faults]
    console.print(f"rows with unmet expectations: {', '.join(wrong)}" if wrong else "all rows meet their expectations")
    return 1 if wrong else 0


def _play_rows(bench: Bench, plan: Iterable[tuple[Row, float]], *, events: int) -> Iterator[table.Line]:
    """Play the rows one after another, and yield the line of each.

    Raises:
        DemoError: A row cannot be played to its end.
    """
    outcome: Outcome | None = None
    for row, seconds in plan:
        before = _counts(outcome, bench)
        try:
            observed = play_row(row, bench, events=events, seconds=seconds)
            outcome = wait_until_counted(bench)
        except DemoError as error:
            raise DemoError(f"{row.name}: {error}; logs: {bench.runtime.logs}") from error
        yield _line(row, observed, before, outcome, bench)


def main() -> int:
    """Run the program, and return its exit code."""
    parser = argparse.ArgumentParser(prog="faults", description=__doc__)
    parser.add_argument("--rows", default="", help=f"names of rows, separated by commas: {','.join(ROWS)}")
    parser.add_argument("--events", type=int, default=20_000, help="events that each row writes directly to Kafka")
    parser.add_argument("--seconds", type=float, default=40.0, help="duration of a fault, at most for random faults")
    parser.add_argument("--minutes", type=float, default=0.0, help="minutes of random faults after the named faults")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("build/faults"),
        help="folder for faults.json with all results",
    )
    parser.add_argument("--page", type=Path, help="Markdown page whose table is replaced")
    parser.add_argument("--seed", type=int, help="seed of random faults (default: a random one, printed)")
    arguments = parser.parse_args()
    unknown = set(filter(None, arguments.rows.split(","))) - set(ROWS)
    if unknown:
        raise SystemExit(f"--rows: there is no row {', '.join(sorted(unknown))}; use some of {', '.join(ROWS)}")
    return command(lambda console: in_folder("faults", lambda folder: _run(arguments, console, folder)))


if __name__ == "__main__":
    sys.exit(main())
