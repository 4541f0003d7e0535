"""Measures how far the pipelines of `up` lag behind, for `status.json` and Prometheus."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from tidemill_chassis.status_server import StatusServer
from tidemill_operator.actuators.kafka.clusters import Clusters
from tidemill_operator.actuators.kafka.offsets import OffsetReader
from tidemill_operator.addresses import PostgresAddress
from tidemill_operator.keys import Key
from tidemill_operator.laptop.store import StoredPipeline
from tidemill_operator.observer import figures
from tidemill_operator.observer.figures import Observation
from tidemill_operator.observer.observer import ReportProgress
from tidemill_operator.observer.observers import Observers


class LocalFigures:
    """Measures figures, such as the lag of each pipeline, in a thread of `up`."""

    def __init__(
        self,
        log: OffsetReader,
        postgres: PostgresAddress,
        *,
        clusters: Clusters,
        host: str,
        say: Callable[[str], None],
        progress: ReportProgress = lambda *_: None,
    ) -> None:
        self._observer = Observers(log, clusters, postgres, self._record, progress=progress)
        self._server = StatusServer(host, 0, lambda: (200, {"status": "healthy"}), lambda: True, lambda: True)
        self._say = say
        self._status_fields: dict[Key, dict[str, Any]] = {}
        self._watched: set[Key] = set()

    @property
    def port(self) -> int:
        """The port of the metrics."""
        return self._server.port

    def start(self) -> None:
        """Start measuring and serving metrics."""
        self._server.start()
        self._observer.start()

    def close(self) -> None:
        """Stop measuring and serving metrics."""
        self._observer.stop()
        self._server.stop()

    def watch(self, pipelines: Iterable[StoredPipeline]) -> None:
        """Measure the given pipelines, and forget all others."""
        statuses = {key_of(stored): stored.status for stored in pipelines}
        for key, status in statuses.items():
            self._observer.watch(key, status)
        for key in self._watched - statuses.keys():
            self._observer.forget(key)
            self._status_fields.pop(key, None)
        self._watched = set(statuses)

    def status(self, stored: StoredPipeline) -> Mapping[str, Any]:
        """Return the figures for a pipeline's status, or an empty mapping before the first measurement."""
        return self._status_fields.get(key_of(stored), {})

    def target(self, host: str) -> dict[str, object]:
        """Return the target from which Prometheus scrapes the figures."""
        return {"targets": [f"{host}:{self.port}"], "labels": {"component": "operator"}}

    def _record(self, key: Key, observation: Observation) -> None:
        previous = self._status_fields.get(key, {})
        self._status_fields[key] = fields = figures.status_fields(observation, previous, 1)
        if figures.availability_changed(previous, fields):
            state = f"not known: {observation.fault}" if observation.figures is None else "known again"
            self._say(f"{key}: figures are {state}")


def key_of(stored: StoredPipeline) -> Key:
    """Return the key of a pipeline in the observer."""
    return Key(stored.namespace, stored.name, str(stored.document["metadata"].get("uid", "")))
