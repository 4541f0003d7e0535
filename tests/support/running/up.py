"""`tidemill up` as a process, in a folder of the test."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tidemill_operator.processes.child import start_time
from waiting import eventually

READY_SECONDS = 90.0
ENVIRON = {name: value for name, value in os.environ.items() if not name.startswith("TIDEMILL_")}


def tidemill(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a command of `tidemill` in a folder until it ends."""
    command = [sys.executable, "-m", "tidemill_operator.cli", *arguments]
    return subprocess.run(command, cwd=folder, env=ENVIRON, capture_output=True, text=True, check=False, timeout=120)


class Up:
    """A running `tidemill up` in a folder."""

    def __init__(self, folder: Path, process: subprocess.Popen[bytes]) -> None:
        self.folder = folder
        self.process = process

    @property
    def output(self) -> str:
        return (self.folder / "up.log").read_text()

    @property
    def ready_file(self) -> dict[str, Any]:
        return dict(json.loads((self.folder / "ready.json").read_text()))

    @property
    def status(self) -> dict[str, Any]:
        return dict(json.loads((self.folder / ".tidemill" / "status.json").read_text()))

    def wait_ready(self) -> None:
        def ready() -> bool:
            assert self.process.poll() is None, self.output
            return (self.folder / "ready.json").exists() and bool(self.status["ready"])

        eventually(ready, seconds=READY_SECONDS, what=f"ready; so far:\n{self.output}")

    def pids(self) -> dict[str, int]:
        processes = {**self.status["workloads"], **self.status["servers"]}
        return {name: process["pid"] for name, process in processes.items() if process["pid"]}

    def end(self, number: int) -> int:
        self.process.send_signal(number)
        return self.process.wait(60)


@contextmanager
def up(
    folder: Path,
    *files: str,
    options: Sequence[str] = (),
    environ: Mapping[str, str] | None = None,
) -> Iterator[Up]:
    """Start `tidemill up`, and end it after the block. It is not ready at first.

    Args:
        folder: the working folder, which also has the data.
        files: files of resources in the folder; `a.yaml` by default.
        options: further options of the command.
        environ: variables that are added to the environment, which has no `TIDEMILL_` variables.
    """
    arguments = [argument for file in files or ("a.yaml",) for argument in ("-f", file)]
    command = [sys.executable, "-m", "tidemill_operator.cli", "up", *arguments, "--ready-file", "ready.json"]
    command += ["--port-ingest", "0", "--port-api", "0", *options]
    with open(folder / "up.log", "wb") as log:
        process = subprocess.Popen(
            command, cwd=folder, env=ENVIRON | dict(environ or {}), stdout=log, stderr=subprocess.STDOUT
        )
    started = Up(folder, process)
    try:
        yield started
    finally:
        if process.poll() is None:
            started.end(signal.SIGTERM)


def gone(pids: dict[str, int]) -> list[str]:
    """Return the names of processes that still run."""
    return [name for name, pid in pids.items() if start_time(pid)]
