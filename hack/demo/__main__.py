"""`make demo` and `make demo-chaos`: replays departures, shows answers, and compares all windows.

The exit code is 0 if every window is correct.
"""

from __future__ import annotations

import argparse
import contextlib
import secrets
import sys
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from demo.chaos import KILLS, SESSION_TIMEOUT_MS, Chaos
from demo.course import check_answers, command, in_folder, send
from demo.data import ROOT, load_departures
from demo.runtime import Runtime

EXAMPLE = ROOT / "crds" / "examples" / "flights.yaml"
# The share of events that may be sent before the chaos ends, so that events flow until its end.
_MAX_SHARE_DURING_CHAOS = 0.98


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="demo", description=__doc__)
    parser.add_argument("--keep", action="store_true", help="leave everything running until Ctrl-C")
    parser.add_argument(
        "--chaos", action="store_true", help="kill, freeze, scale and reset processors during the replay"
    )
    parser.add_argument("--seed", type=int, help="seed of the chaos (default: a random one, printed)")
    parser.add_argument("--events", type=int, help="send only the first N departures")
    parser.add_argument("--seconds", type=float, default=140.0, help="minimum duration of a replay with chaos")
    return parser.parse_args()


def _gate(total: int, chaos: Chaos, seconds: float) -> Callable[[int], None]:
    started = time.monotonic()

    def gate(before: int) -> None:
        share = before / total
        while not chaos.done.is_set() and share > min((time.monotonic() - started) / seconds, _MAX_SHARE_DURING_CHAOS):
            chaos.done.wait(0.05)

    return gate


def _run(arguments: argparse.Namespace, console: Console, folder: Path) -> int:
    started = time.monotonic()
    departures = load_departures()
    if arguments.events:
        departures = departures.head(arguments.events)
    environment = {"TIDEMILL_SESSION_TIMEOUT_MS": str(SESSION_TIMEOUT_MS)} if arguments.chaos else {}
    runtime = Runtime(EXAMPLE, folder, environment=environment)
    try:
        console.print(f"starting {EXAMPLE.relative_to(ROOT)} (log: {runtime.log})")
        runtime.start()
        console.print(
            f"ready after {time.monotonic() - started:.1f} s: ingest {runtime.url('ingest')}, API {runtime.url('api')}"
        )
        chaos = _start_chaos(arguments, runtime, console)
        gate = _gate(departures.height, chaos, arguments.seconds) if chaos else lambda _: None
        totals = send(runtime, departures, console, gate=gate)
        if chaos is not None:
            chaos.join()
        code = check_answers(runtime, departures, totals, console)
        if chaos is not None:
            console.print("chaos: " + ", ".join(f"{action} {count} times" for action, count in chaos.counts.items()))
            if chaos.counts["kill"] < min(KILLS, 20):
                console.print(f"[red]chaos: {chaos.counts['kill']} kills, expected {min(KILLS, 20)} at least[/red]")
                code = 1
        console.print(f"done after {time.monotonic() - started:.1f} s")
        if arguments.keep:
            console.print(
                f"dashboard: {runtime.url('api')}/   API: {runtime.url('api')}/docs   Ctrl-C stops everything"
            )
            with contextlib.suppress(KeyboardInterrupt):
                runtime.wait()
        return code
    finally:
        status = runtime.stop()
        if status != 0:
            console.print(f"[red]`tidemill up` ended with exit status {status}[/red]")


def _start_chaos(arguments: argparse.Namespace, runtime: Runtime, console: Console) -> Chaos | None:
    if not arguments.chaos:
        return None
    seed = arguments.seed if arguments.seed is not None else secrets.randbelow(1_000_000)
    console.print(f"chaos with --seed {seed}")
    begun = time.monotonic()
    chaos = Chaos(runtime, seed=seed, say=lambda text: console.print(f"{time.monotonic() - begun:6.1f} s  {text}"))
    chaos.start()
    return chaos


def main() -> int:
    """Run the program, and return its exit code."""
    arguments = _arguments()
    return command(lambda console: in_folder("demo", lambda folder: _run(arguments, console, folder)))


if __name__ == "__main__":
    sys.exit(main())
