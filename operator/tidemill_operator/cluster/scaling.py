"""Scaling in a cluster.

A poll decides on the number of replicas. A reconcile pass writes the number into the Deployment and the status.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from tidemill_contract.resource.spec import API_VERSION, KIND, AnalyticsPipeline, ScaledComponent
from tidemill_contract.runtime import PipelineConfig
from tidemill_operator.actuators.kubernetes.api import CONFIG_MAP, DEPLOYMENT, Api, Document, Kind
from tidemill_operator.actuators.kubernetes.rollout import rolled_out
from tidemill_operator.cluster.events import Recorder
from tidemill_operator.cluster.queue import Delays, Result, WorkQueue
from tidemill_operator.cluster.telemetry import Measures
from tidemill_operator.errors import TidemillError
from tidemill_operator.keys import Key
from tidemill_operator.plan.render import marks, objects
from tidemill_operator.plan.render.marks import OwnerReference
from tidemill_operator.scaler import (
    STATUS_MEMBERS,
    Memory,
    Reader,
    Running,
    Scalable,
    Scaler,
    change_text,
    targets,
)
from tidemill_operator.scaling import Decision

log = logging.getLogger(__name__)
Target = Scalable[Key]
INTERVAL_SECONDS = 60.0
_FILE = "memory.json"
_WORKERS = 4
_DELAYS = Delays(drift=3600.0, most=15.0)
_SAID = ("mode", "desired", "reason")


class ClusterSite:
    """Reads the state of Deployments, and stores each component's scaling state in a ConfigMap."""

    def __init__(
        self, api: Api, decided: Callable[[Target, Decision], None], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._api, self._decided, self._clock = api, decided, clock
        self._written: dict[Target, tuple[float, Memory]] = {}
        self._lock = threading.Lock()

    def look(self, key: Target) -> Running | None:
        """Return a component's config and numbers of replicas, or None if the component does not run."""
        config = self._config(key.pipeline)
        live = self._deployment(key) if config else None
        if config is None or live is None:
            return None
        ready = int(live.get("status", {}).get("readyReplicas", 0))
        settled = int(live["spec"].get("replicas", 1)) if rolled_out(live) else None
        return Running(config, ready, settled, key.component)

    def remembered(self, key: Target) -> Memory:
        """Return the stored state, or a new state with the Deployment's number of replicas."""
        kept = self._own(CONFIG_MAP, key.pipeline, config_map(key))
        memory = Memory.from_json((kept.get("data") or {}).get(_FILE, "")) if kept else Memory()
        if memory.replicas is None:
            live = self._deployment(key)
            memory = replace(memory, replicas=int(live["spec"].get("replicas", 1)) or None if live else None)
        return memory

    def remember(self, key: Target, memory: Memory, *, changed: bool) -> None:
        """Store a changed decision at once, and other changes at most once per INTERVAL_SECONDS."""
        if memory.replicas is None:
            self.forget(key)  # the next pass deletes the ConfigMap
            return
        with self._lock:
            at, written = self._written.get(key, (-INTERVAL_SECONDS, Memory()))
        early = self._clock() - at < INTERVAL_SECONDS
        if not changed and (early or essence(memory) == essence(written)):
            return
        try:
            if self._is_others(key):
                log.warning(
                    "%s: ConfigMap %s was not made by Tidemill, so scaling decisions are not stored",
                    key,
                    config_map(key),
                )
            else:
                self._api.apply(manifest(key, memory))
        except TidemillError as error:
            log.warning("%s: the decision is not stored yet: %s", key, error)
            return
        with self._lock:
            self._written[key] = (self._clock(), memory)

    def tell(self, key: Target, decision: Decision) -> None:
        """Report a change of replicas."""
        self._decided(key, decision)

    def forget(self, key: Target) -> None:
        """Forget the state of a component."""
        with self._lock:
            self._written.pop(key, None)

    def _config(self, key: Key) -> PipelineConfig | None:
        kept = self._own(CONFIG_MAP, key, marks.config_map(key.name))
        try:
            return PipelineConfig.from_json(((kept or {}).get("data") or {})[f"{key.name}.json"])
        except (KeyError, ValueError):
            return None

    def _deployment(self, key: Target) -> Document | None:
        return self._own(DEPLOYMENT, key.pipeline, f"{key.pipeline.name}-{key.component}")

    def _own(self, kind: Kind, key: Key, name: str) -> Document | None:
        live = self._api.get(kind, key.namespace, name)
        return live if live and live["metadata"].get("labels", {}).get(marks.OWNER_UID) == key.uid else None

    def _is_others(self, key: Target) -> bool:
        live = self._api.get(CONFIG_MAP, key.pipeline.namespace, config_map(key))
        return live is not None and live["metadata"].get("labels", {}).get(marks.MANAGED_BY) != marks.MANAGER


def config_map(key: Target) -> str:
    """Return the name of the ConfigMap that stores the state of a component."""
    return marks.scaling(key.pipeline.name, key.component)


def manifest(key: Target, memory: Memory) -> Document:
    """Return the ConfigMap that stores a state."""
    pipeline = key.pipeline
    owner = OwnerReference(pipeline.uid, pipeline.name)
    metadata = marks.own_metadata(
        config_map(key), pipeline.namespace, pipeline=pipeline.name, component=marks.SCALING, owner=owner
    )
    return objects.config_map(metadata, {_FILE: memory.to_json()})


def essence(memory: Memory) -> Memory:
    """Return a scaling state without times and samples, so that two states can be compared."""
    state = memory.state
    wanted = tuple((0.0, replicas) for _, replicas in state.wanted)
    return replace(memory, state=replace(state, polled_at=None, samples=(), wanted=wanted, failed_polls=0))


def is_news(written: Mapping[str, Any] | None, current: Mapping[str, Any], seconds: float) -> bool:
    """Return whether to write a decision to the status.

    A new decision is written at once, and changed figures at most once per INTERVAL_SECONDS.

    Args:
        written: the `status.scaling` that was written last, or None.
        current: the `status.scaling` of the current decision.
        seconds: the time since the last write.
    """
    if written is None or any(current.get(name) != written.get(name) for name in _SAID):
        return True
    return current != written and seconds >= INTERVAL_SECONDS


@dataclass
class _Component:
    """The scaling state of a component, shared by passes and polls."""

    scales: bool = False
    paused: bool = False
    written: Mapping[str, Any] | None = None
    written_at: float = 0.0


class ClusterScaling:
    """Scales all pipelines after `start` is called."""

    def __init__(
        self,
        api: Api,
        reader: Reader,
        *,
        recorder: Recorder,
        measures: Measures,
        wake: Callable[[Key], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._recorder, self._measures, self._wake, self._clock = recorder, measures, wake, clock
        self._site = ClusterSite(api, self._changed, clock=clock)
        self._scaler: Scaler[Target] = Scaler(self._site, reader)
        self._queue: WorkQueue[Target] = WorkQueue(self._poll, _DELAYS, workers=_WORKERS)
        self._known: dict[Target, _Component] = {}
        self._lock = threading.Lock()

    def start(self) -> None:
        """Start polling."""
        self._queue.start()

    def stop(self) -> None:
        """Stop polling."""
        self._queue.stop()

    def replicas(self, key: Key, running: AnalyticsPipeline) -> Mapping[ScaledComponent, int]:
        """Return the number of replicas that scaling has decided on, for each component with a decision.

        Raises:
            TidemillError: the stored state cannot be read.
        """
        counts: dict[ScaledComponent, int] = {}
        for target in targets(key):
            scaling = running.spec.scaling_of(target.component)
            with self._lock:
                state = self._known.setdefault(target, _Component())
                state.scales = scaling is not None and not running.spec.suspend
            if scaling is not None and scaling.mode == "lag":
                replicas = self._scaler.replicas(target)
                counts |= {} if replicas is None else {target.component: replicas}
        return counts

    def watch(self, key: Key, *, paused: bool = False) -> None:
        """Record the end of a pass."""
        for target in targets(key):
            with self._lock:
                state = self._known.get(target)
                if state is None:
                    continue
                state.paused = paused
                polled = state.scales and not paused
            if polled:
                self._queue.add(target, delay=self._scaler.rest(target))

    def status(self, key: Key, previous: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
        """Return the status fields with each component's last scaling decision."""
        members = ((target, STATUS_MEMBERS[target.component]) for target in targets(key))
        return {member: self._told(target, previous.get(member) or {}) for target, member in members}

    def _told(self, target: Target, previous: Mapping[str, Any]) -> Mapping[str, Any]:
        status = self._scaler.status(target)
        with self._lock:
            state = self._known.get(target)
            if state is None:
                return previous  # not polled yet
            if not state.scales:
                state.written = None
                return {}
            if state.written is None and previous:
                state.written, state.written_at = (
                    dict(previous),
                    self._clock(),
                )  # the operator wrote this decision before its restart
            if not status:
                return previous
            if self._is_news(state, status):
                state.written, state.written_at = status, self._clock()
            return state.written or previous

    def poll(self, key: Key, component: ScaledComponent = "processor") -> Result:
        """Make a scaling decision if the component is due. Request a pass if the status has to change."""
        return self._poll(Scalable(key, component))

    def _poll(self, target: Target) -> Result:
        with self._lock:
            state = self._known.get(target)
        if state is None or state.paused:
            return Result.GONE
        seconds: float | None = self._scaler.rest(target)
        if not seconds:
            try:
                seconds = self._scaler.poll(target)
            except TidemillError as error:
                log.warning("%s: no decision: %s", target, error)
                return Result.FAILED
            if seconds is None:
                self._measures.unscaled(target.pipeline, target.component)
                return Result.GONE
            self._decided(target, state)
        self._queue.add(target, delay=seconds)
        return Result.SETTLED

    def forget(self, key: Key) -> None:
        """Forget a deleted pipeline."""
        for target in targets(key):
            with self._lock:
                self._known.pop(target, None)
            self._scaler.forget(target)
            self._site.forget(target)
            self._measures.unscaled(key, target.component)

    def _decided(self, target: Target, state: _Component) -> None:
        status = self._scaler.status(target)
        with self._lock:
            gone, news = target not in self._known, self._is_news(state, status)
        if gone:
            self.forget(target.pipeline)
            return
        self._measures.scaled(target.pipeline, status, target.component)
        if news:
            self._wake(target.pipeline)

    def _is_news(self, state: _Component, status: Mapping[str, Any]) -> bool:
        return is_news(state.written, status, self._clock() - state.written_at)

    def _changed(self, target: Target, decision: Decision) -> None:
        key = target.pipeline
        metadata = {"namespace": key.namespace, "name": key.name, "uid": key.uid}
        limit = f", limited by {decision.limited_by}" if decision.limited_by else ""
        text = f"{change_text(target.component, decision)}{limit}"
        document = {"apiVersion": API_VERSION, "kind": KIND, "metadata": metadata}
        log.info("%s: %s (%s)", key, text, decision.reason)
        self._recorder.tell(document, "Normal", decision.reason, text, at=str(decision.at))
        self._wake(key)
