"""A child process with a pid file and a log. The child ends when its parent ends."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from tidemill_contract.files import read_text
from tidemill_operator.processes.files import write_atomic

_SHIM = str(Path(__file__).with_name("shim.py"))
# Linux sends the death signal when the parent's *thread* that forked the child ends. So one permanent thread forks all
# children.
_KEPT_LOGS = 3
_forker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="tidemill-fork")


@dataclass(frozen=True)
class Command:
    """The command of a child process.

    Attributes:
        user: the user to run as, or None for the current user. To change the user, the parent needs root.
        death_signal: the signal that the child gets when its parent dies.
        stop_signal: the signal that asks the child to end.
        grace_seconds: how long the parent waits for the child to end before SIGKILL.
    """

    name: str
    arguments: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    user: str | None = None
    working_dir: Path | None = None
    death_signal: int = signal.SIGKILL
    stop_signal: int = signal.SIGTERM
    grace_seconds: float = 10.0


def start_time(pid: int) -> str | None:
    """Return the start time of a process as text, or None if the process is not alive."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        if Path("/proc/self").exists():
            return None
        result = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
        return result.stdout.strip() or None
    except ProcessLookupError:
        return None
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else fields[19]


def descendants(pid: int) -> list[int]:
    """Return the descendants of a process (on Linux only)."""
    pids: list[int] = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                pids += [int(child), *descendants(int(child))]
    return pids


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _wait_gone(pids: Mapping[int, str], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while any(start_time(pid) == started for pid, started in pids.items()):
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.02)
    return True


def end_leftover(pid_file: Path) -> bool:
    """End the process of a pid file, remove the file, and return whether the process was alive."""
    try:
        record = json.loads(read_text(pid_file))
        pid, started = int(record["pid"]), str(record["started"])
        stop_signal, grace_seconds = int(record["stop_signal"]), float(record["grace_seconds"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        pid_file.unlink(missing_ok=True)
        return False
    alive = start_time(pid) == started
    if alive:
        _signal(pid, stop_signal)
        _signal(pid, signal.SIGCONT)
        if not _wait_gone({pid: started}, grace_seconds):
            _signal(pid, signal.SIGKILL)
            _wait_gone({pid: started}, 5.0)
    pid_file.unlink(missing_ok=True)
    return alive


class Child:
    """A child process. Only `pid` and `running` are thread-safe."""

    def __init__(self, command: Command, *, run_dir: Path, log_dir: Path) -> None:
        self.command = command
        self.pid_file = run_dir / f"{command.name}.pid"
        self.log_file = log_dir / f"{command.name}.log"
        self.started_at = 0.0
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def running(self) -> bool:
        """Whether the process is alive. A process that SIGSTOP has frozen counts as alive."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int | None:
        """The process id, or None if the process is not alive."""
        return self._process.pid if self._process is not None and self.running else None

    @property
    def exit_code(self) -> int | None:
        """The exit status (-N after signal N), or None while the process is alive."""
        return None if self._process is None else self._process.poll()

    def spawn(self) -> None:
        """Start the process. A leftover process of a killed run is ended first."""
        command = self.command
        end_leftover(self.pid_file)
        self.log_file.parent.mkdir(parents=True, exist_ok=True)
        self._rotate_logs()
        shim = [sys.executable, "-I", "-S", _SHIM, str(os.getpid()), str(int(command.death_signal)), command.user or ""]
        with open(self.log_file, "wb") as log:
            self._process = _forker.submit(
                subprocess.Popen,
                [*shim, *command.arguments],
                env=dict(command.environment) or None,
                cwd=command.working_dir,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            ).result()
        self.started_at = time.monotonic()
        record = {
            "pid": self._process.pid,
            "started": start_time(self._process.pid) or "",
            "stop_signal": int(command.stop_signal),
            "grace_seconds": command.grace_seconds,
        }
        write_atomic(self.pid_file, json.dumps(record))

    def _rotate_logs(self) -> None:
        names = [self.log_file, *(Path(f"{self.log_file}.{n}") for n in range(1, _KEPT_LOGS + 1))]
        for older, newer in zip(reversed(names), reversed(names[:-1]), strict=False):
            if newer.exists():
                newer.replace(older)

    def terminate(self) -> None:
        """Ask the process to end, without waiting."""
        if self._process is not None and self.running:
            _signal(self._process.pid, self.command.stop_signal)
            _signal(self._process.pid, signal.SIGCONT)  # a suspended process handles signals only after SIGCONT

    def stop(self) -> None:
        """Ask the process to end, kill it after its grace period, and reap it."""
        if self._process is not None and self.running:
            self.terminate()
            try:
                self._process.wait(self.command.grace_seconds)
            except subprocess.TimeoutExpired:
                self.kill()
        self.pid_file.unlink(missing_ok=True)

    def kill(self) -> None:
        """Kill the process and its descendants with SIGKILL, and reap it."""
        if self._process is None or not self.running:
            return
        family = {pid: started for pid in descendants(self._process.pid) if (started := start_time(pid))}
        _signal(self._process.pid, signal.SIGKILL)
        for pid in family:
            _signal(pid, signal.SIGKILL)
        self._process.wait(10.0)
        _wait_gone(family, 5.0)

    def log_tail(self, lines: int = 15) -> str:
        """Return the last lines of the log."""
        try:
            with open(self.log_file, "rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - 8192))
                return "\n".join(file.read().decode(errors="replace").splitlines()[-lines:])
        except FileNotFoundError:
            return ""
