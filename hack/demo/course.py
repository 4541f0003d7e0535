"""The steps of a demo on any platform: sends departures, waits until they are processed, compares the answers."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import polars as pl
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from demo.answers import check_accounts, print_answers, print_comparisons, wait_closed, wait_settled
from demo.compare import compare_all
from demo.data import to_events
from demo.expected import milliseconds
from demo.replay import Replay, Totals, to_batches
from demo.runtime import DemoError, Platform

BATCH_EVENTS = 500


def command(run: Callable[[Console], int]) -> int:
    """Run a demo as a program, and return its exit code. SIGTERM ends the demo like Ctrl-C."""
    console = Console(width=None if sys.stdout.isatty() else 140, soft_wrap=True)
    # Unlike SIGTERM, SIGINT raises KeyboardInterrupt, so that the demo stops the processes that it has started.
    signal.signal(signal.SIGTERM, lambda *_: os.kill(os.getpid(), signal.SIGINT))
    try:
        return run(console)
    except KeyboardInterrupt:
        return 130
    except (DemoError, RuntimeError, httpx.HTTPError) as error:
        console.print(f"[red]demo failed:[/red] {error}", highlight=False)
        return 1


def in_folder(name: str, run: Callable[[Path], int]) -> int:
    """Call a function with a new folder, which is kept after a failure. Return the function's exit code.

    Args:
        name: The name of the program, which becomes part of the folder's name.
        run: The function to run; it gets the folder.
    """
    folder = Path(tempfile.mkdtemp(prefix=f"tidemill-{name}-"))
    # If this program runs as root, Postgres runs as another user, who must enter the folder.
    folder.chmod(0o755)
    keep = True
    try:
        code = run(folder)
        keep = code != 0
        return code
    except KeyboardInterrupt:
        keep = False
        raise
    finally:
        if keep:
            print(f"logs and data are kept in {folder}", file=sys.stderr)
        else:
            shutil.rmtree(folder, ignore_errors=True)


def send(
    platform: Platform, departures: pl.DataFrame, console: Console, *, gate: Callable[[int], None] = lambda _: None
) -> Totals:
    """Send all departures through ingest, and print the speed.

    Args:
        platform: The platform that receives the events.
        departures: The departures in the order in which they are sent.
        console: The console that shows the progress.
        gate: The argument `gate` of `Replay`.
    """
    batches = to_batches(to_events(departures), departures["ts"].dt.epoch("ms").to_list(), BATCH_EVENTS)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("departures", total=departures.height)
        replay = Replay(
            platform.url("ingest"),
            platform.name,
            disorder_ms=milliseconds(platform.document["spec"]["source"]["eventTime"]["maxDisorder"]),
            on_progress=lambda done: progress.update(task, completed=done),
            gate=gate,
        )
        started = time.monotonic()
        totals = replay.run(batches)
    seconds = time.monotonic() - started
    console.print(
        f"{totals.acknowledged:,} events acknowledged in {seconds:.1f} s"
        f" ({totals.acknowledged / seconds:,.0f} events/s),"
        f" {totals.retried:,} of them sent again, {totals.quarantined:,} quarantined"
    )
    return totals


def check_answers(platform: Platform, departures: pl.DataFrame, totals: Totals, console: Console) -> int:
    """Wait until all events are processed, print answers, and compare all windows. Return the exit code."""
    faults = []
    with httpx.Client(timeout=60.0, trust_env=False) as client:
        begun = time.monotonic()
        wait_settled(client, platform, totals.acknowledged)
        console.print(f"lag is zero {time.monotonic() - begun:.1f} s after the last event was acknowledged")
        wait_closed(client, platform, departures["ts"].max())  # type: ignore[arg-type]
        console.print(f"windows are closed {time.monotonic() - begun:.1f} s after the last event was acknowledged")
        print_answers(client, platform, console)
        begun = time.monotonic()
        faults += check_accounts(client, platform, totals, sent=departures.height)
        spec = platform.document["spec"]
        comparisons = list(compare_all(client, platform.url("api"), platform.name, spec, departures))
    print_comparisons(comparisons, console, seconds=time.monotonic() - begun)
    faults += [f"{c.aggregation}: {text}" for c in comparisons for text in c.differences]
    for fault in faults:
        console.print(f"[red]difference[/red] {fault}", highlight=False)
    wrong = sum(comparison.wrong for comparison in comparisons)
    if faults or wrong:
        console.print(f"[red]{wrong:,} differences[/red]")
        return 1
    console.print("[green]every window and metric equals the batch recomputation[/green]")
    return 0
