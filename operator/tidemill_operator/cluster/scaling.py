"""Scaling in a cluster.

Pipelines are polled from a separate queue, and each pipeline's decisions are stored in a ConfigMap.

A poll never writes a Deployment or a status. A poll requests a pass, and the pass writes the Deployment and the status.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from tidemill_contract.resource.spec import API_VERSION, KIND, AnalyticsPipeline
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
from tidemill_operator.scaler import Memory, Reader, Running, Scaler
from tidemill_operator.scaling import Decision

log = logging.getLogger(__name__)
INTERVAL_SECONDS = 60.0
_FILE = "memory.json"
_WORKERS = 4
# A poll schedules the next poll itself. This delay matters only if a poll did not do so.
_DELAYS = Delays(drift=3600.0, most=15.0)
_SAID = ("mode", "desired", "reason")


class ClusterSite:
    """Reads Deployments, and stores decisions in the ConfigMap `<pipeline>-scaling`, which the pipeline owns.

    Args:
        api: the API of the cluster.
        decided: called with each decision that changes replicas.
        clock: returns monotonic seconds.
    """

    def __init__(
        self, api: Api, decided: Callable[[Key, Decision], None], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._api, self._decided, self._clock = api, decided, clock
        self._written: dict[Key, tuple[float, Memory]] = {}
        self._lock = threading.Lock()

    def look(self, key: Key) -> Running | None:
        """Return the config of the running pods, and the state of their Deployment."""
        config = self._config(key)
        live = self._own(DEPLOYMENT, key, f"{key.name}-processor") if config else None
        if config is None or live is None:
            return None
        ready = int(live.get("status", {}).get("readyReplicas", 0))
        return Running(config, ready, settled=int(live["spec"].get("replicas", 1)) if rolled_out(live) else None)

    def remembered(self, key: Key) -> Memory:
        """Return the stored state. Without a stored state, scaling starts from the running number of processors."""
        kept = self._own(CONFIG_MAP, key, marks.scaling(key.name))
        memory = Memory.from_json((kept.get("data") or {}).get(_FILE, "")) if kept else Memory()
        if memory.replicas is None:
            live = self._own(DEPLOYMENT, key, f"{key.name}-processor")
            memory = replace(memory, replicas=int(live["spec"].get("replicas", 1)) or None if live else None)
        return memory

    def remember(self, key: Key, memory: Memory, *, changed: bool) -> None:
        """Write a state if it has changed, but not at every poll. The next poll repeats a failed write."""
        if memory.replicas is None:
            self.forget(key)  # a pass deletes the ConfigMap
            return
        with self._lock:
            at, written = self._written.get(key, (-INTERVAL_SECONDS, Memory()))
        early = self._clock() - at < INTERVAL_SECONDS
        if not changed and (early or essence(memory) == essence(written)):
            return
        try:
            if self._is_others(key):
                log.warning("%s: ConfigMap %s is not Tidemill's: decisions are not kept", key, marks.scaling(key.name))
            else:
                self._api.apply(manifest(key, memory))
        except TidemillError as error:
            log.warning("%s: the decision is not stored yet: %s", key, error)
            return
        with self._lock:
            self._written[key] = (self._clock(), memory)

    def tell(self, key: Key, decision: Decision) -> None:
        """Report a change of replicas."""
        self._decided(key, decision)

    def forget(self, key: Key) -> None:
        """Forget the state of a pipeline."""
        with self._lock:
            self._written.pop(key, None)

    def _config(self, key: Key) -> PipelineConfig | None:
        kept = self._own(CONFIG_MAP, key, marks.config_map(key.name))
        try:
            return PipelineConfig.from_json(((kept or {}).get("data") or {})[f"{key.name}.json"])
        except (KeyError, ValueError):
            return None

    def _own(self, kind: Kind, key: Key, name: str) -> Document | None:
        """Return an object of this pipeline. An object of an earlier pipeline with the same name is not returned."""
        found = self._api.get(kind, key.namespace, name)
        return found if found and found["metadata"].get("labels", {}).get(marks.OWNER_UID) == key.uid else None

    def _is_others(self, key: Key) -> bool:
        found = self._api.get(CONFIG_MAP, key.namespace, marks.scaling(key.name))
        return found is not None and found["metadata"].get("labels", {}).get(marks.MANAGED_BY) != marks.MANAGER


def manifest(key: Key, memory: Memory) -> Document:
    """Return the ConfigMap that stores a state."""
    owner = OwnerReference(key.uid, key.name)
    metadata = marks.own_metadata(
        marks.scaling(key.name), key.namespace, pipeline=key.name, component=marks.SCALING, owner=owner
    )
    return objects.config_map(metadata, {_FILE: memory.to_json()})


def essence(memory: Memory) -> Memory:
    """Return the fields of a state that have to be stored when they change. Times are left out."""
    state = memory.state
    wanted = tuple((0.0, replicas) for _, replicas in state.wanted)
    return replace(memory, state=replace(state, polled_at=None, samples=(), wanted=wanted, failed_polls=0))


def is_news(told: Mapping[str, Any] | None, found: Mapping[str, Any], seconds: float) -> bool:
    """Return whether to write a decision to the status.

    A new decision is written at once. Changed figures are written after a while.

    Args:
        told: the status of the decision that was written last.
        found: the status of the current decision.
        seconds: the time since the last write.
    """
    if told is None or any(found.get(name) != told.get(name) for name in _SAID):
        return True
    return found != told and seconds >= INTERVAL_SECONDS


@dataclass
class _Pipeline:
    """The state of a pipeline that passes and polls share.

    Attributes:
        scales: whether the accepted spec uses scaling.
        paused: whether the resource is paused.
        told: the `status.scaling` that passes write.
        told_at: when `told` last changed.
    """

    scales: bool = False
    paused: bool = False
    told: Mapping[str, Any] | None = None
    told_at: float = 0.0


class ClusterScaling:
    """Scales all pipelines. Polls begin with `start`. Safe to share between threads.

    Args:
        api: the API of the cluster.
        reader: reads figures.
        recorder: writes Events of changes.
        measures: the operator's own metrics.
        wake: requests a pass over a pipeline.
        clock: returns monotonic seconds.
    """

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
        self._scaler: Scaler[Key] = Scaler(self._site, reader)
        self._queue = WorkQueue(self.poll, _DELAYS, workers=_WORKERS)
        self._known: dict[Key, _Pipeline] = {}
        self._lock = threading.Lock()

    def start(self) -> None:
        """Start polling."""
        self._queue.start()

    def stop(self) -> None:
        """Stop polling."""
        self._queue.stop()

    def replicas(self, key: Key, running: AnalyticsPipeline) -> int | None:
        """Return the decided number of processors for a spec, or None if nothing is decided or scaling is not used.

        Raises:
            TidemillError: the stored state cannot be read.
        """
        scaling = running.spec.processor.scaling
        with self._lock:
            known = self._known.setdefault(key, _Pipeline())
            known.scales = scaling is not None and not running.spec.suspend
        return self._scaler.replicas(key) if scaling is not None and scaling.mode == "lag" else None

    def watch(self, key: Key, *, paused: bool = False) -> None:
        """Note the end of a pass. A pipeline that uses scaling and is not paused is polled when it is due."""
        with self._lock:
            known = self._known.get(key)
            if known is None:
                return
            known.paused = paused
            polled = known.scales and not paused
        if polled:
            self._queue.add(key, delay=self._scaler.rest(key))

    def status(self, key: Key, previous: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return `status.scaling`. The result changes only if the decision has changed, or after a minute.

        Args:
            key: the pipeline's key.
            previous: `status.scaling` in the cluster.
        """
        found = self._scaler.status(key)
        with self._lock:
            known = self._known.get(key)
            if known is None:
                return previous  # not polled yet
            if not known.scales:
                known.told = None
                return {}
            if known.told is None and previous:
                known.told, known.told_at = dict(previous), self._clock()  # an earlier operator has written it
            if not found:
                return previous
            if self._is_news(known, found):
                known.told, known.told_at = found, self._clock()
            return known.told or previous

    def poll(self, key: Key) -> Result:
        """Decide on the processors of a pipeline that is due, and request a pass if something has to be written."""
        with self._lock:
            known = self._known.get(key)
        if known is None or known.paused:
            return Result.GONE
        seconds: float | None = self._scaler.rest(key)
        if not seconds:
            try:
                seconds = self._scaler.poll(key)
            except TidemillError as error:
                log.warning("%s: no decision: %s", key, error)
                return Result.FAILED
            if seconds is None:
                self._measures.unscaled(key)
                return Result.GONE
            self._decided(key, known)
        self._queue.add(key, delay=seconds)
        return Result.SETTLED

    def forget(self, key: Key) -> None:
        """Forget a deleted pipeline. Kubernetes deletes its ConfigMap."""
        with self._lock:
            self._known.pop(key, None)
        self._scaler.forget(key)
        self._site.forget(key)
        self._measures.unscaled(key)

    def _decided(self, key: Key, known: _Pipeline) -> None:
        """Update the metrics with a decision, and request a pass if the status has to change."""
        found = self._scaler.status(key)
        with self._lock:
            gone, news = key not in self._known, self._is_news(known, found)
        if gone:
            self.forget(key)
            return
        self._measures.scaled(key, found)
        if news:
            self._wake(key)

    def _is_news(self, known: _Pipeline, found: Mapping[str, Any]) -> bool:
        return is_news(known.told, found, self._clock() - known.told_at)

    def _changed(self, key: Key, decision: Decision) -> None:
        """Write an Event for a change of replicas, and request a pass that makes the change."""
        metadata = {"namespace": key.namespace, "name": key.name, "uid": key.uid}
        limit = f", limited by {decision.limited_by}" if decision.limited_by else ""
        text = f"{decision.current} → {decision.replicas} processors{limit}"
        document = {"apiVersion": API_VERSION, "kind": KIND, "metadata": metadata}
        log.info("%s: %s (%s)", key, text, decision.reason)
        self._recorder.tell(document, "Normal", decision.reason, text, at=str(decision.at))
        self._wake(key)
