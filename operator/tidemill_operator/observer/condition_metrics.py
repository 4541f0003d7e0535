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


class ConditionExporter:
    """Exports conditions as metrics. The class is thread-safe."""

    def __init__(self) -> None:
        self._exported: dict[Hashable, frozenset[tuple[str, ...]]] = {}
        self._lock = threading.Lock()

    def export(self, key: Hashable, namespace: str, name: str, conditions: Iterable[Mapping[str, Any]]) -> None:
        """Replace a pipeline's exported conditions."""
        label_sets = frozenset((namespace, name, c["type"], c["status"], c["reason"]) for c in conditions)
        with self._lock:
            before = self._exported.pop(key, frozenset())
            if label_sets:
                self._exported[key] = label_sets
            for labels in before.difference(*self._exported.values()):
                CONDITION.remove(*labels)
            for labels in label_sets - before:
                CONDITION.labels(*labels).set(1)

    def keep_only(self, keys: Iterable[Hashable]) -> None:
        """Remove other pipelines' conditions."""
        with self._lock:
            removed = self._exported.keys() - set(keys)
        for key in removed:
            self.export(key, "", "", ())
