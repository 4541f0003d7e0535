"""Scaling in `up`: polls pipelines in a separate thread, and stores decisions in files between runs."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from tidemill_contract.files import read_text
from tidemill_contract.runtime import PipelineConfig
from tidemill_operator.processes.files import write_atomic
from tidemill_operator.processes.supervisor import ReplicaState
from tidemill_operator.scaler import Memory, Reader, Running, Scaler
from tidemill_operator.scaling import Decision

_log = logging.getLogger(__name__)
_TICK_SECONDS = 0.2
_IDLE_SECONDS = 1.0
_TROUBLE_SECONDS = 5.0

_Key = tuple[str, str]


class Runtime(Protocol):
    """The methods of the processors' runtime that scaling needs."""

    config_root: Path

    def replicas(self, namespace: str, workload: str) -> list[ReplicaState]:
        """Return the processes of a workload."""
        ...


class _Files:
    """Reads processes of this machine, and stores decisions in `<namespace>/<name>.json`."""

    def __init__(self, folder: Path, runtime: Runtime, say: Callable[[str], None]) -> None:
        self._folder, self._runtime, self._say = folder, runtime, say

    def look(self, key: _Key) -> Running | None:
        namespace, name = key
        try:
            config = PipelineConfig.from_json(read_text(self._runtime.config_root / namespace / f"{name}.json"))
        except (FileNotFoundError, ValueError):
            return None
        states = self._runtime.replicas(namespace, f"{name}-processor")
        ready = sum(state.ready and state.current for state in states)
        return Running(config, ready, settled=ready if ready == len(states) else None)

    def remembered(self, key: _Key) -> Memory:
        try:
            return Memory.from_json(read_text(self.path(key)))
        except FileNotFoundError:
            return Memory()

    def remember(self, key: _Key, memory: Memory, *, changed: bool) -> None:
        write_atomic(self.path(key), memory.to_json())

    def tell(self, key: _Key, decision: Decision) -> None:
        limit = f", limited by {decision.limited_by}" if decision.limited_by else ""
        change = f"{decision.current} → {decision.replicas} processors"
        self._say(f"{key[0]}/{key[1]}: {change} ({decision.reason}{limit})")

    def path(self, key: _Key) -> Path:
        return self._folder / key[0] / f"{key[1]}.json"


class LocalScaling:
    """The decisions of one run. Polls begin with `start`. Any thread may call the methods.

    Args:
        folder: the folder of the stored decisions.
        reader: reads figures.
        runtime: the runtime of the processors. The runtime's config files have the scaling settings.
        say: prints each change of replicas.
    """

    def __init__(self, folder: Path, *, reader: Reader, runtime: Runtime, say: Callable[[str], None]) -> None:
        self._files = _Files(folder, runtime, say)
        self._scaler: Scaler[_Key] = Scaler(self._files, reader)
        self._due: dict[_Key, float] = {}
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="tidemill-scaling", daemon=True)

    def start(self) -> None:
        """Begin to poll."""
        self._thread.start()

    def close(self) -> None:
        """Stop polling. The decisions are kept."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join()

    def watch(self, pipelines: Iterable[_Key]) -> None:
        """Poll these pipelines (namespace, name) and no others, if they use scaling."""
        wanted = set(pipelines)
        with self._lock:
            gone, new = self._due.keys() - wanted, wanted - self._due.keys()
            self._due = {key: self._due.get(key, 0.0) for key in wanted}
        for key in gone:
            self._scaler.forget(key)
        for key in new:
            self._scaler.replicas(key)

    def forget(self, namespace: str, name: str) -> None:
        """Delete the stored decisions of a released pipeline."""
        self._files.path((namespace, name)).unlink(missing_ok=True)

    def replicas(self, namespace: str, name: str) -> int | None:
        """Return the decided number of processors, or None if nothing is decided yet."""
        return self._scaler.replicas((namespace, name))

    def status(self, namespace: str, name: str) -> Mapping[str, Any]:
        """Return `status.scaling` of the last decision, or empty if there is none."""
        return self._scaler.status((namespace, name))

    def decisions(self) -> Mapping[_Key, int | None]:
        """Return the decided numbers of processors of all pipelines. The caller compares them to notice a change."""
        return self._scaler.decisions()

    def history(self, namespace: str, name: str) -> list[dict[str, Any]]:
        """Return the last decisions, oldest first."""
        return self._scaler.history((namespace, name))

    def _loop(self) -> None:
        while not self._closing.wait(_TICK_SECONDS):
            with self._lock:
                due = [key for key, at in self._due.items() if time.monotonic() >= at]
            for key in due:
                if self._closing.is_set():
                    return
                self._again(key, self._poll(key))

    def _poll(self, key: _Key) -> float:
        """Decide, and return the seconds until the next poll."""
        try:
            seconds = self._scaler.poll(key)
        except Exception:  # the thread must survive every error, e.g. a full disk or a half-written file
            _log.exception("scaling %s/%s failed; trying again", *key)
            return _TROUBLE_SECONDS
        return _IDLE_SECONDS if seconds is None else seconds

    def _again(self, key: _Key, seconds: float) -> None:
        with self._lock:
            watched = key in self._due
            if watched:
                self._due[key] = time.monotonic() + seconds
        if not watched:  # the pipeline was released meanwhile
            self._scaler.forget(key)
