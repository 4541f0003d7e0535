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
from tidemill_operator.actuators.kubernetes.rollout import is_rolled_out
from tidemill_operator.cluster.event_recorder import EventRecorder
from tidemill_operator.cluster.queue import Delays, Result, WorkQueue
from tidemill_operator.cluster.telemetry import OperatorMetrics
from tidemill_operator.errors import TidemillError
from tidemill_operator.keys import Key
from tidemill_operator.plan.render import object_metadata, objects
from tidemill_operator.plan.render.object_metadata import OwnerReference
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

log = logging.getLogger(__name__)
Target = Scalable[Key]
INTERVAL_SECONDS = 60.0
_FILE = "memory.json"
_WORKERS = 4
_DELAYS = Delays(drift=3600.0, max_backoff=15.0)
_DECISION_MEMBERS = ("mode", "desired", "reason")


class ClusterBackend:
    """Reads the state of Deployments, and stores each component's scaling state in a ConfigMap."""

    def __init__(
        self, api: Api, on_change: Callable[[Target, Decision], None], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._api, self._on_change, self._clock = api, on_change, clock
        self._written: dict[Target, tuple[float, SavedScaling]] = {}
        self._lock = threading.Lock()

    def find_running(self, key: Target) -> RunningComponent | None:
        """Return a component's config and numbers of replicas, or None if the component does not run."""
        config = self._config(key.pipeline)
        deployment = self._deployment(key) if config else None
        if config is None or deployment is None:
            return None
        ready = int(deployment.get("status", {}).get("readyReplicas", 0))
        settled = int(deployment["spec"].get("replicas", 1)) if is_rolled_out(deployment) else None
        return RunningComponent(config, ready, settled, key.component)

    def load(self, key: Target) -> SavedScaling:
        """Return the stored state, or a new state with the Deployment's number of replicas."""
        stored = self._get_owned(CONFIG_MAP, key.pipeline, config_map(key))
        saved = SavedScaling.from_json((stored.get("data") or {}).get(_FILE, "")) if stored else SavedScaling()
        if saved.replicas is None:
            deployment = self._deployment(key)
            replicas = int(deployment["spec"].get("replicas", 1)) if deployment else 0
            saved = replace(saved, replicas=replicas or None)
        return saved

    def save(self, key: Target, saved: SavedScaling, *, changed: bool) -> None:
        """Store a changed decision at once, and other changes at most once per INTERVAL_SECONDS."""
        if saved.replicas is None:
            self.forget(key)  # the next pass deletes the ConfigMap
            return
        with self._lock:
            written_at, written = self._written.get(key, (-INTERVAL_SECONDS, SavedScaling()))
        early = self._clock() - written_at < INTERVAL_SECONDS
        if not changed and (early or without_samples(saved) == without_samples(written)):
            return
        try:
            if self._is_foreign(key):
                log.warning(
                    "%s: ConfigMap %s was not made by Tidemill, so scaling decisions are not stored",
                    key,
                    config_map(key),
                )
            else:
                self._api.apply(manifest(key, saved))
        except TidemillError as error:
            log.warning("%s: the decision is not stored yet: %s", key, error)
            return
        with self._lock:
            self._written[key] = (self._clock(), saved)

    def report(self, key: Target, decision: Decision) -> None:
        """Report a change of replicas."""
        self._on_change(key, decision)

    def forget(self, key: Target) -> None:
        """Forget the state of a component."""
        with self._lock:
            self._written.pop(key, None)

    def _config(self, key: Key) -> PipelineConfig | None:
        stored = self._get_owned(CONFIG_MAP, key, object_metadata.config_map_name(key.name))
        try:
            return PipelineConfig.from_json(((stored or {}).get("data") or {})[f"{key.name}.json"])
        except (KeyError, ValueError):
            return None

    def _deployment(self, key: Target) -> Document | None:
        return self._get_owned(DEPLOYMENT, key.pipeline, f"{key.pipeline.name}-{key.component}")

    def _get_owned(self, kind: Kind, key: Key, name: str) -> Document | None:
        live = self._api.get(kind, key.namespace, name)
        return live if live and live["metadata"].get("labels", {}).get(object_metadata.OWNER_UID) == key.uid else None

    def _is_foreign(self, key: Target) -> bool:
        live = self._api.get(CONFIG_MAP, key.pipeline.namespace, config_map(key))
        return (
            live is not None
            and live["metadata"].get("labels", {}).get(object_metadata.MANAGED_BY) != object_metadata.MANAGER
        )


def config_map(key: Target) -> str:
    """Return the name of the ConfigMap that stores the state of a component."""
    return object_metadata.scaling_config_map(key.pipeline.name, key.component)


def manifest(key: Target, saved: SavedScaling) -> Document:
    """Return the ConfigMap that stores a state."""
    pipeline = key.pipeline
    owner = OwnerReference(pipeline.uid, pipeline.name)
    metadata = object_metadata.own_metadata(
        config_map(key), pipeline.namespace, pipeline=pipeline.name, component=object_metadata.SCALING, owner=owner
    )
    return objects.config_map(metadata, {_FILE: saved.to_json()})


def without_samples(saved: SavedScaling) -> SavedScaling:
    """Return a scaling state without times and samples, so that two states can be compared."""
    state = saved.state
    wanted = tuple((0.0, replicas) for _, replicas in state.wanted)
    return replace(saved, state=replace(state, polled_at=None, samples=(), wanted=wanted, failed_polls=0))


def is_write_due(written: Mapping[str, Any] | None, current: Mapping[str, Any], seconds: float) -> bool:
    """Return whether to write a decision to the status.

    A new decision is written at once, and changed figures at most once per INTERVAL_SECONDS.

    Args:
        written: the `status.scaling` that was written last, or None.
        current: the `status.scaling` of the current decision.
        seconds: the time since the last write.
    """
    if written is None or any(current.get(name) != written.get(name) for name in _DECISION_MEMBERS):
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
        recorder: EventRecorder,
        metrics: OperatorMetrics,
        request_pass: Callable[[Key], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._recorder, self._metrics, self._request_pass, self._clock = recorder, metrics, request_pass, clock
        self._backend = ClusterBackend(api, self._report_change, clock=clock)
        self._scaler: Scaler[Target] = Scaler(self._backend, reader)
        self._queue: WorkQueue[Target] = WorkQueue(self._poll, _DELAYS, workers=_WORKERS)
        self._components: dict[Target, _Component] = {}
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
        for target in scalable_components(key):
            scaling = running.spec.scaling_of(target.component)
            with self._lock:
                state = self._components.setdefault(target, _Component())
                state.scales = scaling is not None and not running.spec.suspend
            if scaling is not None and scaling.mode == "lag":
                replicas = self._scaler.replicas(target)
                counts |= {} if replicas is None else {target.component: replicas}
        return counts

    def watch(self, key: Key, *, paused: bool = False) -> None:
        """Schedule the next polls after a pass, unless the pipeline is paused."""
        for target in scalable_components(key):
            with self._lock:
                state = self._components.get(target)
                if state is None:
                    continue
                state.paused = paused
                needs_poll = state.scales and not paused
            if needs_poll:
                self._queue.add(target, delay=self._scaler.seconds_to_poll(target))

    def status(self, key: Key, previous: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
        """Return the status fields with each component's last scaling decision."""
        members = ((target, STATUS_MEMBERS[target.component]) for target in scalable_components(key))
        return {member: self._decision_status(target, previous.get(member) or {}) for target, member in members}

    def _decision_status(self, target: Target, previous: Mapping[str, Any]) -> Mapping[str, Any]:
        status = self._scaler.status(target)
        with self._lock:
            state = self._components.get(target)
            if state is None:
                return previous  # not polled yet
            if not state.scales:
                state.written = None
                return {}
            if state.written is None and previous:
                # the operator wrote this decision before its restart
                state.written, state.written_at = dict(previous), self._clock()
            if not status:
                return previous
            if self._is_write_due(state, status):
                state.written, state.written_at = status, self._clock()
            return state.written or previous

    def poll(self, key: Key, component: ScaledComponent = "processor") -> Result:
        """Make a scaling decision if the component is due. Request a pass if the status has to change."""
        return self._poll(Scalable(key, component))

    def _poll(self, target: Target) -> Result:
        with self._lock:
            state = self._components.get(target)
        if state is None or state.paused:
            return Result.GONE
        seconds: float | None = self._scaler.seconds_to_poll(target)
        if not seconds:
            try:
                seconds = self._scaler.poll(target)
            except TidemillError as error:
                log.warning("%s: no decision: %s", target, error)
                return Result.FAILED
            if seconds is None:
                self._metrics.remove_scaling(target.pipeline, target.component)
                return Result.GONE
            self._publish_decision(target, state)
        self._queue.add(target, delay=seconds)
        return Result.SETTLED

    def forget(self, key: Key) -> None:
        """Forget a deleted pipeline."""
        for target in scalable_components(key):
            with self._lock:
                self._components.pop(target, None)
            self._scaler.forget(target)
            self._backend.forget(target)
            self._metrics.remove_scaling(key, target.component)

    def _publish_decision(self, target: Target, state: _Component) -> None:
        status = self._scaler.status(target)
        with self._lock:
            gone, write_due = target not in self._components, self._is_write_due(state, status)
        if gone:
            self.forget(target.pipeline)
            return
        self._metrics.record_scaling(target.pipeline, status, target.component)
        if write_due:
            self._request_pass(target.pipeline)

    def _is_write_due(self, state: _Component, status: Mapping[str, Any]) -> bool:
        return is_write_due(state.written, status, self._clock() - state.written_at)

    def _report_change(self, target: Target, decision: Decision) -> None:
        key = target.pipeline
        metadata = {"namespace": key.namespace, "name": key.name, "uid": key.uid}
        limit = f", limited by {decision.limited_by}" if decision.limited_by else ""
        text = f"{change_text(target.component, decision)}{limit}"
        document = {"apiVersion": API_VERSION, "kind": KIND, "metadata": metadata}
        log.info("%s: %s (%s)", key, text, decision.reason)
        self._recorder.write_event(document, "Normal", decision.reason, text, at=str(decision.at))
        self._request_pass(key)
