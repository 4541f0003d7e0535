"""Run an observer for each Kafka cluster.

A silent cluster then delays only its own pipelines' figures.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from typing import Any

from tidemill_contract.resource.kinds.kafka import KafkaSpec
from tidemill_operator.actuators.kafka.clusters import Cluster, Clusters
from tidemill_operator.actuators.kafka.offsets import OffsetReader
from tidemill_operator.addresses import PostgresAddress
from tidemill_operator.errors import TidemillError
from tidemill_operator.keys import Key
from tidemill_operator.observer.figures import Observation
from tidemill_operator.observer.observer import Observer, ReportProgress, ShowObservation
from tidemill_operator.observer.stages import consumed_topics

log = logging.getLogger(__name__)
_IGNORE_PROGRESS: ReportProgress = lambda *_: None  # noqa: E731 - the default of an argument


class Observers:
    """The observers of all Kafka clusters. Any thread may call `watch` and `forget`."""

    def __init__(
        self,
        kafka: OffsetReader,
        clusters: Clusters,
        postgres: PostgresAddress,
        show: ShowObservation,
        *,
        progress: ReportProgress = _IGNORE_PROGRESS,
    ) -> None:
        showing = threading.Lock()

        def show_one(key: Key, observation: Observation) -> None:
            with showing:
                show(key, observation)

        self._new_observer: Callable[[OffsetReader], Observer] = lambda reader: Observer(
            reader, postgres, show_one, progress=progress
        )
        self._clusters, self._own = clusters, self._new_observer(kafka)
        self._others: dict[Cluster, Observer] = {}
        self._cluster_by_pipeline: dict[Key, Cluster] = {}
        self._running = False
        self._lock = threading.Lock()

    def start(self) -> None:
        """Start measuring."""
        with self._lock:
            self._running = True
            observers = [self._own, *self._others.values()]
        for observer in observers:
            observer.start()

    def stop(self) -> None:
        """Stop measuring."""
        with self._lock:
            self._running = False
            observers = [self._own, *self._others.values()]
        for observer in observers:
            observer.request_stop()
        for observer in observers:
            observer.stop()

    def measure(self) -> None:
        """Measure all pipelines once."""
        with self._lock:
            observers = [self._own, *self._others.values()]
        for observer in observers:
            observer.measure()

    def watch(self, key: Key, status: Mapping[str, Any]) -> None:
        """Start measuring a pipeline if its status has a schema and a topic."""
        if not status.get("schema") or not status.get("topics"):
            return
        topic = status["topics"][0]
        try:
            cluster = self._cluster(key, topic.get("kafka"))
        except TidemillError as error:
            log.info("%s: %s", key, error)  # the reconcile pass reports a missing or wrong Secret
            return
        with self._lock:
            if cluster is not self._cluster_by_pipeline.get(key):
                self._unwatch(key)
            if cluster is None:
                observer = self._own
            else:
                self._cluster_by_pipeline[key] = cluster
                observer = self._others.get(cluster) or self._start_observer(cluster)
        observer.watch(key, status["schema"], *consumed_topics(key, status["topics"]))

    def forget(self, key: Key) -> None:
        """Stop measuring a pipeline, and remove its metrics."""
        with self._lock:
            self._unwatch(key)

    def _cluster(self, key: Key, kafka: Mapping[str, Any] | None) -> Cluster | None:
        return self._clusters.open(key.namespace, KafkaSpec.model_validate(dict(kafka))) if kafka else None

    def _start_observer(self, cluster: Cluster) -> Observer:
        observer = self._others[cluster] = self._new_observer(cluster.offset_reader)
        if self._running:
            observer.start()
        return observer

    def _unwatch(self, key: Key) -> None:
        former = self._cluster_by_pipeline.pop(key, None)
        if former is None:
            self._own.forget(key)
            return
        self._others[former].forget(key)
        if former not in self._cluster_by_pipeline.values():
            self._others.pop(former).request_stop()
