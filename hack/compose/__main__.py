"""`make compose-check`: runs docker-compose.yaml without containers, replays the demo, checks targets and panels."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from compose.checks import watch_faults
from compose.run import Running, running
from demo.course import check_answers, command, in_folder, send
from demo.data import ROOT, load_departures
from demo.runtime import DemoError, topic_ends

_PORTS = {"ingest": 8080, "api": 8081}
_WATCH_SECONDS = 60.0


class Composed:
    """The demo's pipeline in the services of the compose file."""

    def __init__(self, stack: Running) -> None:
        self._stack = stack
        self.document: dict[str, Any] = yaml.safe_load((ROOT / "crds" / "examples" / "flights.yaml").read_text())
        self.name = str(self.document["metadata"]["name"])
        self.namespace = str(self.document["metadata"]["namespace"])

    @property
    def logs(self) -> str:
        """The folder of all logs."""
        return str(self._stack.stage.folder)

    def url(self, component: str) -> str:
        """Return the base URL of `ingest` or `api` at its published port."""
        return self._stack.url("tidemill", _PORTS[component])

    def check_alive(self) -> None:
        """Raise DemoError if a service has ended."""
        for name, child in self._stack.children.items():
            if not child.running:
                raise DemoError(f"{name} ended with exit status {child.exit_code}:\n{child.log_tail()}")

    def topic_ends(self) -> dict[int, int]:
        """Return the end offset of each partition of the events topic."""
        brokers = f"{self._stack.stage.addresses['kafka-1']}:9092"
        return topic_ends(brokers, f"{self.namespace}.{self.name}.events")


def _run(arguments: argparse.Namespace, console: Console, folder: Path) -> int:
    departures = load_departures()
    departures = departures.head(arguments.events) if arguments.events else departures
    begun = time.monotonic()
    with running(ROOT / "docker-compose.yaml", folder, os.environ) as stack:
        console.print(f"healthy after {time.monotonic() - begun:.1f} s ({_durations(stack.seconds)})")
        platform = Composed(stack)
        code = check_answers(platform, departures, send(platform, departures, console), console)
        wrong = watch_faults(stack, console.print, seconds=_WATCH_SECONDS)
        wrong += [f"services.{name}: {trouble}" for name, trouble in stack.failures().items()]
    console.print(f"ended ({_durations({name: ended.seconds for name, ended in stack.ended.items()})})")
    wrong += [
        f"services.{name}: did not end within {seconds:.0f} s and was killed; increase its stop_grace_period"
        for name, seconds in stack.overdue().items()
    ]
    for fault in wrong:
        console.print(f"[red]{fault}[/red]", highlight=False)
    return 1 if wrong else code


def _durations(seconds: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.1f} s" for name, value in seconds.items())


def main() -> int:
    """Run the program, and return its exit code."""
    parser = argparse.ArgumentParser(prog="compose", description=__doc__)
    parser.add_argument("--events", type=int, help="send only the first N departures")
    arguments = parser.parse_args()
    return command(lambda console: in_folder("compose", lambda folder: _run(arguments, console, folder)))


if __name__ == "__main__":
    sys.exit(main())
