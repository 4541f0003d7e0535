"""The leader's regular tasks, which check the watches and find missed changes."""

from __future__ import annotations

import datetime as dt
import logging
import threading
from collections.abc import Callable, Sequence

from tidemill_operator.actuators.kubernetes.api import CONFIG_MAP, PIPELINE, Api, Document
from tidemill_operator.cluster.queue import WorkQueue
from tidemill_operator.cluster.watchdog import Watchdog
from tidemill_operator.errors import TidemillError
from tidemill_operator.keys import Key
from tidemill_operator.plan.render import object_metadata

log = logging.getLogger(__name__)
INTERVAL_SECONDS = 30.0
CANARY = "tidemill-watchdog"


class LeaderTasks:
    """Runs the leader's tasks in a thread until it is stopped."""

    def __init__(
        self,
        api: Api,
        queue: WorkQueue[Key],
        watchdog: Watchdog,
        *,
        namespaces: Sequence[str],
        operator_namespace: str,
        extra_tasks: Sequence[Callable[[], None]] = (),
        interval_seconds: float = INTERVAL_SECONDS,
    ) -> None:
        self._api, self._queue, self._watchdog, self._extra_tasks = api, queue, watchdog, extra_tasks
        self._namespaces = tuple(namespaces)
        # The operator gets no events of objects in unwatched namespaces. The canary is therefore in a watched
        # namespace.
        is_watched = not namespaces or operator_namespace in namespaces
        self._canary_namespace = operator_namespace if is_watched else namespaces[0]
        self._interval = interval_seconds
        self._known: set[Key] = set()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="leader-tasks", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Stop the thread."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(20.0)

    def _run(self) -> None:
        while not self._stopping.is_set():
            for task in (self.touch_canary, self.list_pipelines, *self._extra_tasks):
                try:
                    task()
                except TidemillError as error:
                    log.warning("%s", error)
                except Exception:
                    log.exception("a duty failed")
            self._stopping.wait(self._interval)

    def touch_canary(self) -> None:
        """Write the canary, a ConfigMap.

        The canary's watch event proves that watches work.
        """
        now = dt.datetime.now(dt.UTC).isoformat()
        written = self._api.apply({
            "apiVersion": "v1",
            "kind": CONFIG_MAP.kind,
            "metadata": {
                "name": CANARY,
                "namespace": self._canary_namespace,
                "labels": {**object_metadata.MANAGED_LABELS, object_metadata.COMPONENT: "watchdog"},
                "annotations": {"tidemill.dev/touched-at": now},
            },
        })  # fmt: skip
        metadata = written["metadata"]
        self._watchdog.expect_versions("canary", {metadata["uid"]: metadata["resourceVersion"]})

    def list_pipelines(self) -> None:
        """Queue new and deleted pipelines, and report the resource versions of all pipelines to the watchdog."""
        pipelines: list[Document] = []
        for namespace in self._namespaces or (None,):
            pipelines += self._api.list(PIPELINE, namespace, metadata_only=True)
        metadata = [item["metadata"] for item in pipelines]
        self._watchdog.expect_versions("pipelines", {item["uid"]: item["resourceVersion"] for item in metadata})
        keys = {Key.of(item) for item in metadata}
        for key in keys ^ self._known:  # new and deleted resources
            self._queue.add(key)
        self._known = keys
