"""A supervised process with its desired and current state, and its restarts.

An ended process is restarted after a delay. The delay doubles each time until the process is healthy.
"""

from __future__ import annotations

import contextlib
import http.client
import signal
import time
from dataclasses import dataclass

from tidemill_operator.processes.child import Child, Command, descendants
from tidemill_operator.processes.ports import is_served_by

FIRST_DELAY_SECONDS = 0.2
MAX_DELAY_SECONDS = 30.0
# seconds that a process must be ready before its restart delay is reset
HEALTHY_SECONDS = 5.0
_PROBE_TIMEOUT_SECONDS = 1.5
_READY_PERIOD_SECONDS = 2.0
_UNREADY_PERIOD_SECONDS = 0.2


@dataclass(frozen=True)
class ReplicaSpec:
    """The desired state of a replica.

    Attributes:
        revision: a hash of the settings that the process reads only at its start.
    """

    command: Command
    port: int
    ready_path: str
    revision: str = ""


class Replica:
    """A supervised replica. The caller of `tick` and `set_desired` must hold the supervisor's lock."""

    def __init__(self, child: Child, spec: ReplicaSpec) -> None:
        self._child = child
        self.spec = spec
        self.ready = False
        self.restarts = 0
        self.last_exit: int | None = None
        self._ready_since: float | None = None
        self._restart_delay = FIRST_DELAY_SECONDS
        self._start_at = 0.0
        self._kill_at: float | None = None
        self._was_running = False
        self._desired: ReplicaSpec | None = spec
        self._next_probe = 0.0

    @property
    def pid(self) -> int | None:
        """The id of the process while it is alive."""
        return self._child.pid

    @property
    def gone(self) -> bool:
        """Whether the replica is no longer wanted and its process has ended."""
        return self._desired is None and not self._child.running and not self._was_running

    @property
    def current(self) -> bool:
        """Whether the process runs with the latest spec."""
        return self._child.running and self._kill_at is None and self._desired == self.spec

    @property
    def log_file(self) -> str:
        """The path of the log."""
        return str(self._child.log_file)

    def set_desired(self, spec: ReplicaSpec | None) -> bool:
        """Set the desired state (None stops the replica), and return whether the desired state has changed."""
        changed = spec != self._desired
        self._desired = spec
        if changed:  # a new spec may fix earlier failures, so start without the restart delay
            self._start_at, self._restart_delay = 0.0, FIRST_DELAY_SECONDS
        return changed

    def tick(self, now: float) -> None:
        """Do the next step towards the desired state."""
        if self._child.running:
            if self._kill_at is not None:
                if now >= self._kill_at:
                    self._child.kill()
            elif self._desired != self.spec:
                self._child.terminate()
                self.ready = False
                self._kill_at = now + self.spec.command.grace_seconds
            return
        if self._was_running:
            self._handle_exit(now)
        if self._desired is not None and now >= self._start_at:
            self.spec = self._desired
            self._child.command = self.spec.command
            self._child.spawn()
            self._was_running = True
            self._next_probe = 0.0

    def probe(self, now: float) -> None:
        """Probe the readiness of the process if a probe is due."""
        if not self._child.running or self._kill_at is not None or now < self._next_probe:
            return
        pid = self._child.pid
        ready = is_ready(self.spec.port, self.spec.ready_path)
        if ready and not self.ready and pid is not None:  # another process may answer on the port
            ready = is_served_by(self.spec.port, [pid, *descendants(pid)])
        if pid != self._child.pid:
            return
        if ready and not self.ready:
            self._ready_since = time.monotonic()
        self.ready = ready
        self._next_probe = time.monotonic() + (_READY_PERIOD_SECONDS if ready else _UNREADY_PERIOD_SECONDS)

    def close(self) -> None:
        """Stop the process, and wait until it has ended."""
        self._desired = None
        self._child.stop()
        self.ready = False

    def terminate(self) -> None:
        """Ask the process to end without a restart, and do not wait."""
        self._desired = None
        self._child.terminate()

    def _handle_exit(self, now: float) -> None:
        requested = self._kill_at is not None
        self.last_exit = self._child.exit_code
        was_healthy = self._ready_since is not None and (
            self.last_exit == -signal.SIGKILL or now - self._ready_since >= HEALTHY_SECONDS
        )
        self.ready, self._ready_since, self._kill_at, self._was_running = False, None, None, False
        self._child.pid_file.unlink(missing_ok=True)
        if requested:
            self._start_at, self._restart_delay = now, FIRST_DELAY_SECONDS
            return
        self.restarts += 1
        if was_healthy:
            self._restart_delay = FIRST_DELAY_SECONDS
        self._start_at = now + self._restart_delay
        self._restart_delay = min(self._restart_delay * 2, MAX_DELAY_SECONDS)


def is_ready(port: int, path: str) -> bool:
    """Return whether a GET on loopback answers with 200."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_PROBE_TIMEOUT_SECONDS)
    with contextlib.closing(connection):
        try:
            connection.request("GET", path)
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
