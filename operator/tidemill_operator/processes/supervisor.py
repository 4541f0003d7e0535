"""Keeps replicas in their desired state, and probes their readiness."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tidemill_operator.processes.child import Child, end_leftover
from tidemill_operator.processes.replica import Replica, ReplicaSpec

_log = logging.getLogger(__name__)
_TICK_SECONDS = 0.05


@dataclass(frozen=True)
class ReplicaState:
    """The state of a replica.

    Attributes:
        current: whether the process runs with the latest spec.
        last_exit: the exit status of the last process, such as 1, or -9 after SIGKILL.
    """

    name: str
    pid: int | None
    port: int
    ready: bool
    current: bool
    restarts: int
    last_exit: int | None
    log: str


class Supervisor:
    """Supervises replicas by name. Logs and pid files are in the data folder."""

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir
        self._replicas: dict[str, Replica] = {}
        self._lock = threading.RLock()
        self._closing = threading.Event()
        self._threads = [
            threading.Thread(target=self._loop, args=(step,), name=f"tidemill-{step.__name__.strip('_')}", daemon=True)
            for step in (self._tick, self._probe)
        ]

    def start(self) -> None:
        """Start supervising. Leftover replicas of a killed run are ended first."""
        for pid_file in (self._data_dir / "run").glob("*.*-*.pid"):
            end_leftover(pid_file)
        for thread in self._threads:
            thread.start()

    def set_desired(self, name: str, spec: ReplicaSpec | None) -> bool:
        """Set the desired state of a replica, and return whether the desired state has changed.

        None stops the replica.
        """
        with self._lock:
            replica = self._replicas.get(name)
            if replica is not None:
                return replica.set_desired(spec)
            if spec is not None:
                child = Child(spec.command, run_dir=self._data_dir / "run", log_dir=self._data_dir / "logs")
                self._replicas[name] = Replica(child, spec)
            return spec is not None

    def states(self) -> Mapping[str, ReplicaState]:
        """Return the state of every replica."""
        with self._lock:
            return {
                name: ReplicaState(
                    name=name,
                    pid=replica.pid,
                    port=replica.spec.port,
                    ready=replica.ready and replica.pid is not None,
                    current=replica.current,
                    restarts=replica.restarts,
                    last_exit=replica.last_exit,
                    log=replica.log_file,
                )
                for name, replica in sorted(self._replicas.items())
            }

    def close(self) -> None:
        """End all replicas concurrently, and stop supervising."""
        self._closing.set()
        for thread in self._threads:
            if thread.is_alive():
                thread.join()
        with self._lock:
            for replica in self._replicas.values():
                replica.terminate()
            for replica in self._replicas.values():
                replica.close()
            self._replicas.clear()

    def _loop(self, step: Callable[[], None]) -> None:
        while not self._closing.wait(_TICK_SECONDS):
            try:
                step()
            except Exception:  # supervision must survive every error, e.g. a full disk or a failed fork
                _log.exception("supervising failed; trying again")
                self._closing.wait(1.0)

    def _tick(self) -> None:
        with self._lock:
            for name, replica in list(self._replicas.items()):
                restarts, pid = replica.restarts, replica.pid
                replica.tick(time.monotonic())
                if replica.restarts > restarts:
                    _log.warning("%s ended (%s) and is restarted; log: %s", name, replica.last_exit, replica.log_file)
                elif replica.pid not in (pid, None):
                    _log.info("%s started, pid %s", name, replica.pid)
                if replica.gone:
                    del self._replicas[name]

    def _probe(self) -> None:
        with self._lock:
            replicas = list(self._replicas.values())
        for replica in replicas:
            if self._closing.is_set():
                return
            replica.probe(time.monotonic())
