"""A server process with a readiness check."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from tidemill_operator.laptop.servers.errors import ServerError
from tidemill_operator.processes.child import Child, Command, descendants
from tidemill_operator.processes.ports import is_served_by

Progress = Callable[[str], None]
_POLL_SECONDS = 0.1


class Server:
    """One server process."""

    def __init__(
        self,
        command: Command,
        *,
        port: int,
        data_dir: Path,
        ready: Callable[[], bool],
        on_progress: Progress | None = None,
        ready_seconds: float = 90.0,
    ) -> None:
        self.name = command.name
        self.port = port
        self._child = Child(command, run_dir=data_dir / "run", log_dir=data_dir / "logs")
        self.log_file = self._child.log_file
        self._ready = ready
        self._on_progress = on_progress
        self._ready_seconds = ready_seconds

    @property
    def pid(self) -> int | None:
        """The process id, or None if the process does not run."""
        return self._child.pid

    @property
    def running(self) -> bool:
        """Whether the process is alive."""
        return self._child.running

    @property
    def exit_code(self) -> int | None:
        """The exit code of the process, or None while the process is alive."""
        return self._child.exit_code

    def start(self) -> None:
        """Start the server if it does not run, and wait until it answers.

        Raises:
            ServerError: the server ended, or did not answer in time. The message contains the end of the server's log.
        """
        if not self._child.running:
            self.spawn()
        self.wait_ready()

    def spawn(self) -> None:
        """Start the process without waiting until it answers."""
        self._child.spawn()

    def wait_ready(self) -> None:
        """Wait until the server answers.

        Raises:
            ServerError: the server ended, or did not answer in time.
        """
        started_at = time.monotonic()
        while not (self._ready() and self._has_port()):
            if not self._child.running:
                raise self._failure(f"ended at once (exit status {self._child.exit_code})")
            if time.monotonic() - started_at > self._ready_seconds:
                raise self._failure(f"did not answer within {self._ready_seconds:.0f} s")
            time.sleep(_POLL_SECONDS)
        if self._on_progress:
            self._on_progress(f"{self.name} is ready on 127.0.0.1:{self.port} ({time.monotonic() - started_at:.1f} s)")

    def _has_port(self) -> bool:
        """Return whether this server, and no other process, listens on the port."""
        pid = self.pid
        return pid is not None and is_served_by(self.port, [pid, *descendants(pid)])

    def is_ready(self) -> bool:
        """Return whether the server answers now."""
        return self._ready()

    def terminate(self) -> None:
        """Ask the process to end, without waiting."""
        self._child.terminate()

    def stop(self) -> None:
        """Ask the process to end, and kill it after its grace period."""
        self._child.stop()

    def kill(self) -> None:
        """Kill the process and its children with SIGKILL."""
        self._child.kill()

    def restart(self) -> None:
        """Stop the server, and start it with the same port and data.

        Raises:
            ServerError: the server did not become ready.
        """
        self.stop()
        self.start()

    def _failure(self, what: str) -> ServerError:
        return ServerError(f"{self.name} {what}; the end of {self.log_file}:\n{self._child.log_tail()}")
