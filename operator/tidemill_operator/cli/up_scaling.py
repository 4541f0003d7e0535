"""Scaling in a run of `up`: polls each pipeline in a thread of its own and remembers decisions between runs.

Says how many processors there are to be; making them so is left to the next reconcile.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from tidemill_contract.runtime import PipelineConfig
from tidemill_operator.errors import TidemillError
from tidemill_operator.local.files import write_atomic
from tidemill_operator.local.supervisor import ReplicaState
from tidemill_operator.scaling import Figures, Settings, State, decide, scaling_status
from tidemill_operator.scaling_figures import Watched

_log = logging.getLogger(__name__)
_TICK_SECONDS = 0.2


class Reader(Protocol):
    """Reads figures."""

    def read(self, watched: Watched, *, ready: int, rolling_out: bool) -> Figures:
        """The figures of now."""
        ...


class Runtime(Protocol):
    """Where the processors run."""

    config_root: Path

    def replicas(self, namespace: str, workload: str) -> list[ReplicaState]:
        """The processes of a workload."""
        ...


@dataclass
class _Scaled:
    """A pipeline that is polled.

    Attributes:
        replicas: decided on; None: nothing is yet.
        told: the status of the last decision.
        due: when it is polled next, monotonic seconds.
    """

    state: State = field(default_factory=State)
    replicas: int | None = None
    told: dict[str, Any] = field(default_factory=dict)
    due: float = 0.0


class LocalScaling:
    """Decisions of one run; `start` begins to poll. Its methods may be called from any thread.

    Args:
        folder: where decisions are remembered: `<namespace>/<name>.json`.
        reader: reads figures.
        runtime: where the processors run; its config files say what scaling is asked for.
        say: tells the user of changes.
    """

    def __init__(self, folder: Path, *, reader: Reader, runtime: Runtime, say: Callable[[str], None]) -> None:
        self._folder, self._reader, self._runtime, self._say = folder, reader, runtime, say
        self._scaled: dict[tuple[str, str], _Scaled] = {}
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="tidemill-scaling", daemon=True)

    def start(self) -> None:
        """Begin to poll."""
        self._thread.start()

    def close(self) -> None:
        """Stop polling; decisions stay remembered."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join()

    def watch(self, pipelines: Iterable[tuple[str, str]]) -> None:
        """These pipelines, by namespace and name, and no others, are polled if they ask for it."""
        wanted = set(pipelines)
        with self._lock:
            for key in [key for key in self._scaled if key not in wanted]:
                del self._scaled[key]
            for key in wanted - set(self._scaled):
                self._scaled[key] = self._remembered(key)

    def forget(self, namespace: str, name: str) -> None:
        """A pipeline is released: what was remembered goes."""
        self._path((namespace, name)).unlink(missing_ok=True)

    def replicas(self, namespace: str, name: str) -> int | None:
        """Processors decided on; None: nothing is yet."""
        with self._lock:
            scaled = self._scaled.get((namespace, name))
            return scaled.replicas if scaled else None

    def status(self, namespace: str, name: str) -> Mapping[str, Any]:
        """`status.scaling` of the last decision; empty: there is none."""
        with self._lock:
            scaled = self._scaled.get((namespace, name))
            return dict(scaled.told) if scaled else {}

    def decisions(self) -> Mapping[tuple[str, str], int | None]:
        """Processors decided on, of all pipelines: differs when one changes."""
        with self._lock:
            return {key: scaled.replicas for key, scaled in self._scaled.items()}

    def history(self, namespace: str, name: str) -> list[dict[str, Any]]:
        """The last decisions, oldest first."""
        with self._lock:
            scaled = self._scaled.get((namespace, name))
            records = scaled.state.decisions if scaled else ()
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

    def _loop(self) -> None:
        while not self._closing.wait(_TICK_SECONDS):
            with self._lock:
                due = [(key, scaled) for key, scaled in self._scaled.items() if time.monotonic() >= scaled.due]
            for key, scaled in due:
                if self._closing.is_set():
                    return
                try:
                    self._poll(key, scaled)
                except Exception:  # scaling must outlive a full disk and a file that is just being written
                    _log.exception("scaling %s/%s failed; trying again", *key)
                    scaled.due = time.monotonic() + 5.0

    def _poll(self, key: tuple[str, str], scaled: _Scaled) -> None:
        config = self._config(key)
        settings = Settings.of(config.spec.processor) if config else None
        if config is None or settings is None or config.spec.suspend:
            with self._lock:
                scaled.due, scaled.told = time.monotonic() + 1.0, {}
                if settings is None:
                    scaled.replicas = None
            return
        current = settings.floor if scaled.replicas is None else scaled.replicas
        figures = self._figures(config, current)
        decision, state = decide(settings, scaled.state, figures, current=current, now=time.time())
        decided = decision.replicas if settings.mode == "lag" else None
        with self._lock:
            scaled.state, scaled.replicas = state, decided
            scaled.told = scaling_status(settings, decision, state)
            scaled.due = time.monotonic() + settings.poll_seconds
        self._remember(key, scaled)
        if decision.changes:
            namespace, name = key
            limit = f", limited by {decision.limited_by}" if decision.limited_by else ""
            self._say(f"{namespace}/{name}: {current} → {decision.replicas} processors ({decision.reason}{limit})")

    def _config(self, key: tuple[str, str]) -> PipelineConfig | None:
        """The pipeline as it runs: a refused edit does not count."""
        namespace, name = key
        try:
            return PipelineConfig.from_json((self._runtime.config_root / namespace / f"{name}.json").read_text())
        except (FileNotFoundError, ValueError):
            return None

    def _figures(self, config: PipelineConfig, current: int) -> Figures | None:
        states = self._runtime.replicas(config.namespace, f"{config.name}-processor")
        ready = sum(state.ready and state.current for state in states)
        rolling_out = len(states) != current or ready != current
        try:
            return self._reader.read(Watched.of(config), ready=ready, rolling_out=rolling_out)
        except TidemillError as error:
            _log.info("%s/%s: no figures: %s", config.namespace, config.name, error)
            return None

    def _remembered(self, key: tuple[str, str]) -> _Scaled:
        try:
            record = json.loads(self._path(key).read_text())
            return _Scaled(State.from_json(json.dumps(record["state"])), record["replicas"])
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return _Scaled()

    def _remember(self, key: tuple[str, str], scaled: _Scaled) -> None:
        record = {"replicas": scaled.replicas, "state": json.loads(scaled.state.to_json())}
        write_atomic(self._path(key), json.dumps(record))

    def _path(self, key: tuple[str, str]) -> Path:
        return self._folder / key[0] / f"{key[1]}.json"
