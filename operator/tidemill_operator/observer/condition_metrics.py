"""Export the conditions of pipelines to Prometheus."""

from __future__ import annotations

import threading
from collections.abc import Hashable, Iterable, Mapping
from typing import Any

from prometheus_client import Gauge

CONDITION = Gauge(
    "tidemill_pipeline_condition",
    "1 for each condition in the status of a pipeline.",
    ("namespace", "pipeline", "condition", "status", "reason"),
)


class Conditions:
    """A thread-safe collection of exported conditions."""

    def __init__(self) -> None:
        self._told: dict[Hashable, frozenset[tuple[str, ...]]] = {}
        self._lock = threading.Lock()

    def tell(self, key: Hashable, namespace: str, name: str, conditions: Iterable[Mapping[str, Any]]) -> None:
        """Replace a pipeline's exported conditions."""
        label_sets = frozenset((namespace, name, c["type"], c["status"], c["reason"]) for c in conditions)
        with self._lock:
            before = self._told.pop(key, frozenset())
            if label_sets:
                self._told[key] = label_sets
            for labels in before.difference(*self._told.values()):
                CONDITION.remove(*labels)
            for labels in label_sets - before:
                CONDITION.labels(*labels).set(1)

    def keep(self, keys: Iterable[Hashable]) -> None:
        """Remove other pipelines' conditions."""
        with self._lock:
            gone = self._told.keys() - set(keys)
        for key in gone:
            self.tell(key, "", "", ())
