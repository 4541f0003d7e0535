"""Scaling in `up`: polls processors and Python stages in a thread, and stores decisions in files."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from tidemill_contract.files import read_text
from tidemill_contract.resource.spec import ScaledComponent
from tidemill_contract.runtime import PipelineConfig
from tidemill_operator.processes.files import write_atomic
from tidemill_operator.processes.supervisor import ReplicaState
from tidemill_operator.scaler import (
    STATUS_MEMBERS,
    Reader,
    RunningComponent,
    SavedScaling,
    Scalable,
    Scaler,
    change_text,
    scalable_components,
)
from tidemill_operator.scaling import Decision

_log = logging.getLogger(__name__)
_TICK_SECONDS = 0.2
_IDLE_SECONDS = 1.0
_RETRY_SECONDS = 5.0

_Key = tuple[str, str]
_Target = Scalable[_Key]


class Runtime(Protocol):
    """The methods of the runtime that scaling needs."""

    config_root: Path

    def replicas(self, namespace: str, workload: str) -> list[ReplicaState]:
        """Return the state of each process of a workload."""
        ...


class _FileBackend:
    """Reads the state of local processes, and stores scaling decisions in files."""

    def __init__(self, folder: Path, runtime: Runtime, say: Callable[[str], None]) -> None:
        self._folder, self._runtime, self._say = folder, runtime, say

    def find_running(self, key: _Target) -> RunningComponent | None:
        namespace, name = key.pipeline
        try:
            config = PipelineConfig.from_json(read_text(self._runtime.config_root / namespace / f"{name}.json"))
        except (FileNotFoundError, ValueError):
            return None
        if config.spec.scaling_of(key.component) is None:
            return RunningComponent(config, 0, None, key.component)
        states = self._runtime.replicas(namespace, f"{name}-{key.component}")
        ready = sum(state.ready and state.current for state in states)
        return RunningComponent(config, ready, ready if ready == len(states) else None, key.component)

    def load(self, key: _Target) -> SavedScaling:
        try:
            return SavedScaling.from_json(read_text(self.path(key)))
        except FileNotFoundError:
            return SavedScaling()

    def save(self, key: _Target, saved: SavedScaling, *, changed: bool) -> None:
        write_atomic(self.path(key), saved.to_json())

    def report(self, key: _Target, decision: Decision) -> None:
        limit = f", limited by {decision.limited_by}" if decision.limited_by else ""
        change = change_text(key.component, decision)
        self._say(f"{'/'.join(key.pipeline)}: {change} ({decision.reason}{limit})")

    def path(self, key: _Target) -> Path:
        namespace, name = key.pipeline
        # a pipeline's name contains no dot, so no pipeline is called `<name>.stage`
        return self._folder / namespace / (f"{name}.json" if key.component == "processor" else f"{name}.stage.json")


class LocalScaling:
    """The scaling decisions of one run of `up`."""

    def __init__(self, folder: Path, *, reader: Reader, runtime: Runtime, say: Callable[[str], None]) -> None:
        self._backend = _FileBackend(folder, runtime, say)
        self._scaler: Scaler[_Target] = Scaler(self._backend, reader)
        self._due: dict[_Target, float] = {}
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="tidemill-scaling", daemon=True)

    def start(self) -> None:
        """Begin to poll."""
        self._thread.start()

    def close(self) -> None:
        """Stop polling, and keep the decisions."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join()

    def watch(self, pipelines: Iterable[_Key]) -> None:
        """Poll the scalable components of the given pipelines, and forget all others."""
        targets = {target for pipeline in pipelines for target in scalable_components(pipeline)}
        with self._lock:
            removed, new = self._due.keys() - targets, targets - self._due.keys()
            self._due = {key: self._due.get(key, 0.0) for key in targets}
        for key in removed:
            self._scaler.forget(key)
        for key in new:
            self._scaler.replicas(key)

    def forget(self, namespace: str, name: str) -> None:
        """Delete the stored decisions of a removed pipeline."""
        for target in scalable_components((namespace, name)):
            self._backend.path(target).unlink(missing_ok=True)

    def replicas(self, namespace: str, name: str) -> Mapping[ScaledComponent, int]:
        """Return the number of replicas that scaling has decided on, for each component with a decision."""
        counts = {target.component: self._scaler.replicas(target) for target in scalable_components((namespace, name))}
        return {component: replicas for component, replicas in counts.items() if replicas is not None}

    def status(self, namespace: str, name: str) -> dict[str, Mapping[str, Any]]:
        """Return the status fields with each component's last scaling decision."""
        return {
            STATUS_MEMBERS[target.component]: decision
            for target in scalable_components((namespace, name))
            if (decision := self._scaler.status(target))
        }

    def decisions(self) -> Mapping[_Target, int | None]:
        """Return the numbers of replicas that scaling has decided on, for all pipelines."""
        return self._scaler.decided_replicas()

    def history(self, namespace: str, name: str, component: ScaledComponent = "processor") -> list[dict[str, Any]]:
        """Return the last decisions about a component, oldest first."""
        return self._scaler.history(Scalable((namespace, name), component))

    def describe(self, namespace: str, name: str) -> dict[str, Any]:
        """Return the last and the earlier scaling decisions, as `status.json` shows them."""
        return {
            "scaling": {},
            **self.status(namespace, name),
            "decisions": self.history(namespace, name),
            "stageDecisions": self.history(namespace, name, "stage"),
        }

    def _loop(self) -> None:
        while not self._closing.wait(_TICK_SECONDS):
            with self._lock:
                due = [key for key, at in self._due.items() if time.monotonic() >= at]
            for key in due:
                if self._closing.is_set():
                    return
                self._reschedule(key, self._poll(key))

    def _poll(self, key: _Target) -> float:
        try:
            seconds = self._scaler.poll(key)
        except Exception:  # the thread must survive every error, e.g. a full disk or a half-written file
            _log.exception("scaling %s/%s (%s) failed; trying again", *key.pipeline, key.component)
            return _RETRY_SECONDS
        return _IDLE_SECONDS if seconds is None else seconds

    def _reschedule(self, key: _Target, seconds: float) -> None:
        with self._lock:
            watched = key in self._due
            if watched:
                self._due[key] = time.monotonic() + seconds
        if not watched:  # the pipeline was removed during the poll
            self._scaler.forget(key)
