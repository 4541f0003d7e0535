"""Scaling as both runtimes do it: poll a pipeline, decide, remember, and know how many processors there are to be.

Says how many; making them so is left to the next reconcile. What runs where, and where decisions are remembered, is a
`Site`'s. Who polls, and in which thread, is the runtime's.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from tidemill_contract.runtime import PipelineConfig
from tidemill_operator.errors import TidemillError
from tidemill_operator.observer.scaling_figures import Watched
from tidemill_operator.scaling import Decision, Figures, Settings, State, decide, scaling_status

_log = logging.getLogger(__name__)

K = TypeVar("K", bound=Hashable)
_K = TypeVar("_K", bound=Hashable, contravariant=True)


class Reader(Protocol):
    """Reads figures."""

    def read(self, watched: Watched, *, ready: int, rolling_out: bool) -> Figures:
        """The figures of now."""
        ...


@dataclass(frozen=True)
class Seen:
    """A pipeline as it runs.

    Attributes:
        config: what it was started with: a refused edit does not count.
        ready: processors that work.
        settled: processors there are to be, if these and no others run and all work; None: some come or go.
    """

    config: PipelineConfig
    ready: int
    settled: int | None


@dataclass(frozen=True)
class Memory:
    """What is remembered of a pipeline.

    Attributes:
        state: of the decision.
        replicas: decided on; None: nothing is yet.
    """

    state: State = field(default_factory=State)
    replicas: int | None = None

    def to_json(self) -> str:
        """As text; the same for equal memories."""
        return json.dumps({"replicas": self.replicas, "state": json.loads(self.state.to_json())})

    @classmethod
    def from_json(cls, text: str) -> Memory:
        """What `to_json` wrote; an empty memory if it is broken."""
        try:
            record = json.loads(text)
            replicas = record["replicas"]
            return cls(State.from_json(json.dumps(record["state"])), None if replicas is None else int(replicas))
        except (ValueError, KeyError, TypeError):
            return cls()


class Site(Protocol[_K]):
    """Where pipelines run and decisions are remembered."""

    def look(self, key: _K) -> Seen | None:
        """A pipeline as it runs; None: it does not yet, or no more."""
        ...

    def remembered(self, key: _K) -> Memory:
        """What was remembered last; its replicas are those that run, if none were decided on and that can be seen."""
        ...

    def remember(self, key: _K, memory: Memory, *, changed: bool) -> None:
        """Keep it.

        Args:
            key: of which pipeline.
            memory: what is to be kept.
            changed: whether replicas are to be changed.
        """
        ...

    def tell(self, key: _K, decision: Decision) -> None:
        """Tell the user of a decision that changes replicas, once it is remembered."""
        ...


@dataclass
class _Scaled:
    """A pipeline that is polled.

    Attributes:
        told: the status of the last decision.
        due: when it is polled next, monotonic seconds.
    """

    memory: Memory
    told: dict[str, Any] = field(default_factory=dict)
    due: float = 0.0


class Scaler(Generic[K]):
    """Decisions about pipelines. Safe to call from several threads; each pipeline is polled by one at a time.

    Args:
        site: where they run.
        reader: reads figures.
        now: epoch seconds.
    """

    def __init__(self, site: Site[K], reader: Reader, *, now: Callable[[], float] = time.time) -> None:
        self._site, self._reader, self._now = site, reader, now
        self._scaled: dict[K, _Scaled] = {}
        self._lock = threading.Lock()

    def poll(self, key: K) -> float | None:
        """Decide.

        Returns:
            Seconds until the next poll; None: the pipeline does not scale, or does not run.
        """
        seen = self._site.look(key)
        settings = Settings.of(seen.config.spec.processor) if seen else None
        if seen is None or settings is None or seen.config.spec.suspend:
            self._leave(key, for_good=seen is not None and settings is None)
            return None
        replicas, scaled = self.replicas(key), self._entry(key)
        current = settings.floor if replicas is None else replicas
        figures = self._figures(seen, current) if settings.mode == "lag" else None
        decision, state = decide(settings, scaled.memory.state, figures, current=current, now=self._now())
        decided = decision.replicas if settings.mode == "lag" else None
        with self._lock:
            scaled.memory = memory = Memory(state, decided)
            scaled.told = scaling_status(settings, decision, state)
            scaled.due = time.monotonic() + settings.poll_seconds
        self._site.remember(key, memory, changed=decision.changes)
        if decision.changes:
            self._site.tell(key, decision)
        return settings.poll_seconds

    def rest(self, key: K) -> float:
        """Seconds until a pipeline is to be polled; 0: now."""
        with self._lock:
            scaled = self._scaled.get(key)
            return max(0.0, scaled.due - time.monotonic()) if scaled else 0.0

    def replicas(self, key: K) -> int | None:
        """Processors decided on, or else those that run as far as the site sees them; None: neither.

        Raises:
            TidemillError: what is remembered cannot be read.
        """
        scaled = self._entry(key)
        if scaled.memory.replicas is None:
            return self._site.remembered(key).replicas
        return scaled.memory.replicas

    def status(self, key: K) -> dict[str, Any]:
        """`status.scaling` of the last decision; empty: there is none."""
        with self._lock:
            scaled = self._scaled.get(key)
            return dict(scaled.told) if scaled else {}

    def decisions(self) -> Mapping[K, int | None]:
        """Processors decided on, of all pipelines: differs when one changes."""
        with self._lock:
            return {key: scaled.memory.replicas for key, scaled in self._scaled.items()}

    def history(self, key: K) -> list[dict[str, Any]]:
        """The last decisions, oldest first."""
        with self._lock:
            scaled = self._scaled.get(key)
            records = scaled.memory.state.decisions if scaled else ()
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
        """A pipeline is of no interest any more; what the site remembers stays."""
        with self._lock:
            self._scaled.pop(key, None)

    def _entry(self, key: K) -> _Scaled:
        """What is known of a pipeline; read from the site once."""
        with self._lock:
            known = self._scaled.get(key)
        if known is not None:
            return known
        memory = self._site.remembered(key)
        with self._lock:
            return self._scaled.setdefault(key, _Scaled(memory))

    def _leave(self, key: K, *, for_good: bool) -> None:
        """Nothing is decided now; what was decided is kept unless it is for good."""
        with self._lock:
            scaled = self._scaled.get(key)
            if scaled is None:
                return
            scaled.told = {}
            stale = for_good and scaled.memory != Memory()
            if stale:
                scaled.memory = Memory()
        if stale:
            self._site.remember(key, Memory(), changed=False)

    def _figures(self, seen: Seen, current: int) -> Figures | None:
        config = seen.config
        try:
            return self._reader.read(Watched.of(config), ready=seen.ready, rolling_out=seen.settled != current)
        except TidemillError as error:
            _log.info("%s/%s: no figures: %s", config.namespace, config.name, error)
            return None
