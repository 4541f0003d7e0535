"""Poll each scalable component of a pipeline, decide on its replicas, and store the decision."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from tidemill_contract.resource.spec import ScaledComponent
from tidemill_contract.runtime import PipelineConfig
from tidemill_operator.errors import TidemillError
from tidemill_operator.observer.scaling_figures import MeasuredPipeline, MeasuredStage
from tidemill_operator.scaling import Decision, ScalingFigures, Settings, State, decide, scaling_status

_log = logging.getLogger(__name__)

K = TypeVar("K", bound=Hashable)
P = TypeVar("P", bound=Hashable)
_K = TypeVar("_K", bound=Hashable, contravariant=True)


class Reader(Protocol):
    """A reader of the figures that a scaling decision needs."""

    def read(self, measured: MeasuredPipeline | MeasuredStage, *, ready: int, rolling_out: bool) -> ScalingFigures:
        """Return the current figures."""
        ...


STATUS_MEMBERS: Mapping[ScaledComponent, str] = {"processor": "scaling", "stage": "stageScaling"}
"""The member of `status` that shows the last scaling decision of each component."""
SCALING_MEMBERS = tuple(STATUS_MEMBERS.values())
COMPONENTS = tuple(STATUS_MEMBERS)
_COMPONENT_LABELS: Mapping[ScaledComponent, str] = {"processor": "processors", "stage": "processes of the Python stage"}


def change_text(component: ScaledComponent, decision: Decision) -> str:
    """Describe a change of replicas, such as `1 → 4 processors`."""
    return f"{decision.current} → {decision.replicas} {_COMPONENT_LABELS[component]}"


@dataclass(frozen=True)
class Scalable(Generic[P]):
    """A component of a pipeline that can be scaled.

    Attributes:
        pipeline: the pipeline's key. Its type depends on the runtime.
    """

    pipeline: P
    component: ScaledComponent

    def __str__(self) -> str:
        return f"{self.pipeline} ({self.component})"


def scalable_components(pipeline: P) -> list[Scalable[P]]:
    """Return the components of a pipeline that may be scaled."""
    return [Scalable(pipeline, component) for component in COMPONENTS]


@dataclass(frozen=True)
class RunningComponent:
    """A running component.

    Attributes:
        ready: the number of ready replicas.
        settled: the number of replicas, or None while replicas start or stop.
    """

    config: PipelineConfig
    ready_replicas: int
    settled_replicas: int | None
    component: ScaledComponent = "processor"

    @property
    def settings(self) -> Settings | None:
        """Return the scaling settings, or None if the number of replicas is fixed."""
        spec = self.config.spec
        scaling = spec.scaling_of(self.component)
        return None if scaling is None else Settings.of(scaling, spec.processor.flush_interval)

    @property
    def measured(self) -> MeasuredPipeline | MeasuredStage:
        """Return the topics, the consumer group and the tables from which the component's figures are read."""
        return MeasuredPipeline.of(self.config) if self.component == "processor" else MeasuredStage.of(self.config)


@dataclass(frozen=True)
class SavedScaling:
    """The stored scaling state of a component. `replicas` is None until the first decision."""

    state: State = field(default_factory=State)
    replicas: int | None = None

    def to_json(self) -> str:
        """Return the state as JSON. Equal states give equal texts."""
        return json.dumps({"replicas": self.replicas, "state": json.loads(self.state.to_json())})

    @classmethod
    def from_json(cls, text: str) -> SavedScaling:
        """Parse the JSON of `to_json`, or return an empty state if the text is invalid."""
        try:
            record = json.loads(text)
            replicas = record["replicas"]
            return cls(State.from_json(json.dumps(record["state"])), None if replicas is None else int(replicas))
        except (ValueError, KeyError, TypeError):
            return cls()


class ScalingBackend(Protocol[_K]):
    """Gives access to running components and to stored scaling decisions."""

    def find_running(self, key: _K) -> RunningComponent | None:
        """Return the component, or None if it does not run."""
        ...

    def load(self, key: _K) -> SavedScaling:
        """Return the stored state, or a new state if no state is stored."""
        ...

    def save(self, key: _K, saved: SavedScaling, *, changed: bool) -> None:
        """Store the state."""
        ...

    def report(self, key: _K, decision: Decision) -> None:
        """Report a decision that changes the number of replicas. The decision is already stored."""
        ...


@dataclass
class _PolledComponent:
    """A component that is polled.

    Attributes:
        due: the time of the next poll, in monotonic seconds.
    """

    saved: SavedScaling
    status: dict[str, Any] = field(default_factory=dict)
    next_poll_at: float = 0.0


class Scaler(Generic[K]):
    """A thread-safe scaler that decides on the replicas of components."""

    def __init__(self, backend: ScalingBackend[K], reader: Reader, *, now: Callable[[], float] = time.time) -> None:
        self._backend, self._reader, self._now = backend, reader, now
        self._polled: dict[K, _PolledComponent] = {}
        self._lock = threading.Lock()

    def poll(self, key: K) -> float | None:
        """Poll a component, and decide on its replicas.

        Returns the seconds until the next poll, or None for a component without scaling.
        """
        running = self._backend.find_running(key)
        settings = running.settings if running else None
        if running is None or settings is None or running.config.spec.suspend:
            self._stop_scaling(key, for_good=running is not None and settings is None)
            return None
        replicas, polled = self.replicas(key), self._entry(key)
        current = settings.floor if replicas is None else replicas
        figures = self._figures(running, current) if settings.mode == "lag" else None
        decision, state = decide(settings, polled.saved.state, figures, current=current, now=self._now())
        decided = decision.replicas if settings.mode == "lag" else None
        with self._lock:
            polled.saved = saved = SavedScaling(state, decided)
            polled.status = scaling_status(settings, decision, state)
            polled.next_poll_at = time.monotonic() + settings.poll_seconds
        self._backend.save(key, saved, changed=decision.changes_replicas)
        if decision.changes_replicas:
            self._backend.report(key, decision)
        return settings.poll_seconds

    def seconds_to_poll(self, key: K) -> float:
        """Return the seconds until the next poll of a component."""
        with self._lock:
            polled = self._polled.get(key)
            return max(0.0, polled.next_poll_at - time.monotonic()) if polled else 0.0

    def replicas(self, key: K) -> int | None:
        """Return the number of replicas that scaling has decided on, or None if it is unknown.

        In a cluster, this is the Deployment's number of replicas until the first decision.

        Raises:
            TidemillError: the stored state cannot be read.
        """
        polled = self._entry(key)
        if polled.saved.replicas is None:
            return self._backend.load(key).replicas
        return polled.saved.replicas

    def status(self, key: K) -> dict[str, Any]:
        """Return the part of the resource's status about the last decision, or an empty mapping."""
        with self._lock:
            polled = self._polled.get(key)
            return dict(polled.status) if polled else {}

    def decided_replicas(self) -> Mapping[K, int | None]:
        """Return the number of replicas that scaling has decided on, for each component."""
        with self._lock:
            return {key: polled.saved.replicas for key, polled in self._polled.items()}

    def history(self, key: K) -> list[dict[str, Any]]:
        """Return the last decisions, oldest first."""
        with self._lock:
            polled = self._polled.get(key)
            records = polled.saved.state.decisions if polled else ()
        return [
            {
                "at": record.at,
                "current": record.current,
                "desired": record.desired,
                "reason": record.reason.value,
                "need": record.need,
                "limitedBy": record.limited_by,
            }
            for record in records
        ]

    def forget(self, key: K) -> None:
        """Forget a component, but keep its stored state."""
        with self._lock:
            self._polled.pop(key, None)

    def _entry(self, key: K) -> _PolledComponent:
        with self._lock:
            polled = self._polled.get(key)
        if polled is not None:
            return polled
        saved = self._backend.load(key)
        with self._lock:
            return self._polled.setdefault(key, _PolledComponent(saved))

    def _stop_scaling(self, key: K, *, for_good: bool) -> None:
        """Stop scaling a component. If `for_good` is true, clear the stored state too."""
        with self._lock:
            polled = self._polled.get(key)
            if polled is None:
                return
            polled.status = {}
            stale = for_good and polled.saved != SavedScaling()
            if stale:
                polled.saved = SavedScaling()
        if stale:
            self._backend.save(key, SavedScaling(), changed=False)

    def _figures(self, running: RunningComponent, current: int) -> ScalingFigures | None:
        config = running.config
        try:
            return self._reader.read(
                running.measured, ready=running.ready_replicas, rolling_out=running.settled_replicas != current
            )
        except TidemillError as error:
            _log.info("%s/%s (%s): no figures: %s", config.namespace, config.name, running.component, error)
            return None
