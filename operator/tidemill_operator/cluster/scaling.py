"""Scaling in a cluster: pipelines are polled from a queue of their own, decisions remembered in a ConfigMap each.

A poll never writes a Deployment or a status: it wishes for a pass, which does.
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
from tidemill_operator.scaler import Memory, Reader, Scaler, Seen
from tidemill_operator.scaling import Decision

log = logging.getLogger(__name__)
INTERVAL_SECONDS = 60.0
_FILE = "memory.json"
_WORKERS = 4
# What polls by itself wishes for its next look; this one only catches what is lost.
_DELAYS = Delays(drift=3600.0, most=15.0)
_SAID = ("mode", "desired", "reason")


class ClusterSite:
    """Deployments of a cluster, and decisions in the ConfigMap `<pipeline>-scaling`, which goes with the resource.

    Args:
        api: the cluster.
        decided: is called with a decision that changes replicas.
        clock: seconds that only grow.
    """

    def __init__(
        self, api: Api, decided: Callable[[Key, Decision], None], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._api, self._decided, self._clock = api, decided, clock
        self._written: dict[Key, tuple[float, Memory]] = {}
        self._lock = threading.Lock()

    def look(self, key: Key) -> Seen | None:
        """The config that pods were given, and how far their Deployment is."""
        config = self._config(key)
        live = self._own(DEPLOYMENT, key, f"{key.name}-processor") if config else None
        if config is None or live is None:
            return None
        ready = int(live.get("status", {}).get("readyReplicas", 0))
        return Seen(config, ready, settled=int(live["spec"].get("replicas", 1)) if rolled_out(live) else None)

    def remembered(self, key: Key) -> Memory:
        """What was written last. Without it, as many processors as run: none is taken away because scaling begins."""
        kept = self._own(CONFIG_MAP, key, marks.scaling(key.name))
        memory = Memory.from_json((kept.get("data") or {}).get(_FILE, "")) if kept else Memory()
        if memory.replicas is None:
            live = self._own(DEPLOYMENT, key, f"{key.name}-processor")
            memory = replace(memory, replicas=int(live["spec"].get("replicas", 1)) or None if live else None)
        return memory

    def remember(self, key: Key, memory: Memory, *, changed: bool) -> None:
        """Write it if it says something else, and not at every poll. What cannot be written now is the next time."""
        if memory.replicas is None:
            self.forget(key)  # a pass takes the ConfigMap away
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
            log.warning("%s: the decision is not kept yet: %s", key, error)
            return
        with self._lock:
            self._written[key] = (self._clock(), memory)

    def tell(self, key: Key, decision: Decision) -> None:
        """Hand on a change."""
        self._decided(key, decision)

    def forget(self, key: Key) -> None:
        """Nothing is kept of a pipeline any more."""
        with self._lock:
            self._written.pop(key, None)

    def _config(self, key: Key) -> PipelineConfig | None:
        kept = self._own(CONFIG_MAP, key, marks.config_map(key.name))
        try:
            return PipelineConfig.from_json(((kept or {}).get("data") or {})[f"{key.name}.json"])
        except (KeyError, ValueError):
            return None

    def _own(self, kind: Kind, key: Key, name: str) -> Document | None:
        """An object of this pipeline, not of an earlier one of its name."""
        found = self._api.get(kind, key.namespace, name)
        return found if found and found["metadata"].get("labels", {}).get(marks.OWNER_UID) == key.uid else None

    def _is_others(self, key: Key) -> bool:
        found = self._api.get(CONFIG_MAP, key.namespace, marks.scaling(key.name))
        return found is not None and found["metadata"].get("labels", {}).get(marks.MANAGED_BY) != marks.MANAGER


def manifest(key: Key, memory: Memory) -> Document:
    """The ConfigMap of a memory."""
    owner = OwnerReference(key.uid, key.name)
    metadata = marks.own_metadata(
        marks.scaling(key.name), key.namespace, pipeline=key.name, component=marks.SCALING, owner=owner
    )
    return objects.config_map(metadata, {_FILE: memory.to_json()})


def essence(memory: Memory) -> Memory:
    """What of a memory is worth a write: not that time went by."""
    state = memory.state
    wanted = tuple((0.0, replicas) for _, replicas in state.wanted)
    return replace(memory, state=replace(state, polled_at=None, samples=(), wanted=wanted, failed_polls=0))


def is_news(told: Mapping[str, Any] | None, found: Mapping[str, Any], seconds: float) -> bool:
    """Whether the status is to tell of a decision: of another one at once, of other figures now and then.

    Args:
        told: what it tells.
        found: what it could tell.
        seconds: since it was told.
    """
    if told is None or any(found.get(name) != told.get(name) for name in _SAID):
        return True
    return found != told and seconds >= INTERVAL_SECONDS


@dataclass
class _Pipeline:
    """What a pass and the polls tell each other of a pipeline.

    Attributes:
        scales: whether the spec that runs asks for decisions.
        paused: whether the resource asks to be left alone.
        told: `status.scaling` as passes tell it.
        told_at: since when.
    """

    scales: bool = False
    paused: bool = False
    told: Mapping[str, Any] | None = None
    told_at: float = 0.0


class ClusterScaling:
    """Scaling of all pipelines; `start` begins to poll. Safe to share between threads.

    Args:
        api: the cluster.
        reader: reads figures.
        recorder: tells of changes.
        measures: the operator's own figures.
        wake: wishes for a pass over a pipeline.
        clock: seconds that only grow.
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
        """Poll from now on."""
        self._queue.start()

    def stop(self) -> None:
        """Begin no other poll."""
        self._queue.stop()

    def replicas(self, key: Key, running: AnalyticsPipeline) -> int | None:
        """Processors decided on, for the spec that is to run; None: none is, or that is not asked for.

        Raises:
            TidemillError: what is remembered cannot be read.
        """
        scaling = running.spec.processor.scaling
        with self._lock:
            known = self._known.setdefault(key, _Pipeline())
            known.scales = scaling is not None and not running.spec.suspend
        return self._scaler.replicas(key) if scaling is not None and scaling.mode == "lag" else None

    def watch(self, key: Key, *, paused: bool = False) -> None:
        """A pass has ended: poll if the pipeline asks for it, when it is time to; not while it is paused."""
        with self._lock:
            known = self._known.get(key)
            if known is None:
                return
            known.paused = paused
            polled = known.scales and not paused
        if polled:
            self._queue.add(key, delay=self._scaler.rest(key))

    def status(self, key: Key, previous: Mapping[str, Any]) -> Mapping[str, Any]:
        """What the status is to say: what it said before, unless that says something else or is a minute old.

        Args:
            key: of which pipeline.
            previous: `status.scaling` as it stands in the cluster.
        """
        found = self._scaler.status(key)
        with self._lock:
            known = self._known.get(key)
            if known is None:
                return previous  # not looked at yet
            if not known.scales:
                known.told = None
                return {}
            if known.told is None and previous:
                known.told, known.told_at = dict(previous), self._clock()  # of an operator before this one
            if not found:
                return previous
            if self._is_news(known, found):
                known.told, known.told_at = found, self._clock()
            return known.told or previous

    def poll(self, key: Key) -> Result:
        """Decide about a pipeline if it is time to, and wish for a pass if that has something to do."""
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
        """A pipeline is gone; its ConfigMap goes with it."""
        with self._lock:
            self._known.pop(key, None)
        self._scaler.forget(key)
        self._site.forget(key)
        self._measures.unscaled(key)

    def _decided(self, key: Key, known: _Pipeline) -> None:
        """Show a decision, in the status by a pass if it is news."""
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
        """Tell of a change, and have it made."""
        metadata = {"namespace": key.namespace, "name": key.name, "uid": key.uid}
        limit = f", limited by {decision.limited_by}" if decision.limited_by else ""
        text = f"{decision.current} → {decision.replicas} processors{limit}"
        document = {"apiVersion": API_VERSION, "kind": KIND, "metadata": metadata}
        log.info("%s: %s (%s)", key, text, decision.reason)
        self._recorder.tell(document, "Normal", decision.reason, text, at=str(decision.at))
        self._wake(key)
