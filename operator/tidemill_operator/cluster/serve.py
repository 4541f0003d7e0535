"""The operator's process. Only the leader runs passes."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any

import kopf

from tidemill_chassis.status_server import StatusServer
from tidemill_operator.actuators.kubernetes.api import PIPELINE, NotFound
from tidemill_operator.actuators.kubernetes.cache import CachedApi, ObjectCache
from tidemill_operator.actuators.kubernetes.children import LISTED
from tidemill_operator.actuators.kubernetes.secrets import secret_reader
from tidemill_operator.cluster import handlers
from tidemill_operator.cluster.admission.certificates import CertificateKeeper
from tidemill_operator.cluster.admission.webhook import Webhook
from tidemill_operator.cluster.context import PassContext
from tidemill_operator.cluster.control import Controller
from tidemill_operator.cluster.event_recorder import EventRecorder
from tidemill_operator.cluster.figures_writer import FiguresWriter
from tidemill_operator.cluster.leader import Elector
from tidemill_operator.cluster.leader_tasks import LeaderTasks
from tidemill_operator.cluster.queue import Delays, WorkQueue
from tidemill_operator.cluster.scaling import ClusterScaling
from tidemill_operator.cluster.telemetry import LEADER, OperatorMetrics
from tidemill_operator.cluster.watchdog import Watchdog
from tidemill_operator.cluster_settings import ClusterSettings
from tidemill_operator.errors import TidemillError
from tidemill_operator.keys import Key
from tidemill_operator.observer.instruments import Instruments
from tidemill_operator.observer.observers import Observers
from tidemill_operator.settings import Platform

log = logging.getLogger(__name__)
_WORKERS = 4


class Operator:
    """One replica of the operator."""

    def __init__(self, platform: Platform, settings: ClusterSettings) -> None:
        self._platform, self._settings = platform, settings
        self._cache = ObjectCache([PIPELINE, *LISTED])
        self._api = CachedApi(
            self._cache, all_namespaces=not settings.namespaces, listed_seconds=settings.drift_seconds
        )
        self._watchdog = Watchdog()
        self._stopping = threading.Event()
        self._elector = Elector.of(settings)
        self._recorder, self._metrics = EventRecorder(self._api, settings.pod_name), OperatorMetrics()
        instruments = Instruments.of(platform, secret_reader(self._api), changed=self._on_progress_change)
        self._clusters, self._progress = instruments.clusters, instruments.progress
        self._scaling = ClusterScaling(
            self._api,
            instruments.reader,
            recorder=self._recorder,
            metrics=self._metrics,
            request_pass=lambda key: self._queue.add(key),
        )
        self._figures_writer = FiguresWriter(self._api, self._recorder)
        self._observer = Observers(
            instruments.offset_reader,
            self._clusters,
            platform.postgres,
            self._figures_writer.update,
            progress=self._progress.update,
        )
        self._controller = self._make_controller()
        self._queue = WorkQueue(self._controller.run_pass, Delays(drift=settings.drift_seconds), workers=_WORKERS)
        self._webhook = self._make_webhook() if settings.webhook_port else None
        self._leader_tasks = LeaderTasks(
            self._api,
            self._queue,
            self._watchdog,
            namespaces=settings.namespaces,
            operator_namespace=settings.operator_namespace,
            extra_tasks=[self._webhook.publish] if self._webhook else [],
        )
        self._status = StatusServer("0.0.0.0", settings.status_port, self._health, self._ready, self._live)  # noqa: S104

    def run(self) -> int:
        """Run the operator until SIGTERM, and return the exit code."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._stopping.set())
        for text in self._settings.warnings():
            log.warning("%s", text)
        self._status.start()
        if self._webhook:
            self._webhook.start()
        self._elector.start()
        try:
            while not self._stopping.is_set() and not self._elector.wait(0.2):
                pass
            if not self._stopping.is_set():
                LEADER.set(1)
                self._run_as_leader()
        finally:
            self._stopping.set()
            self._leader_tasks.stop()
            self._observer.stop()
            if self._elector.leading:
                self._figures_writer.remove_all()
            self._scaling.stop()
            self._queue.stop()
            self._elector.stop()
            if self._webhook:
                self._webhook.stop()
            self._status.stop()
        return 0

    def _run_as_leader(self) -> None:
        self._require_resource()
        self._queue.start()
        self._scaling.start()
        self._observer.start()
        self._leader_tasks.start()
        asyncio.run(self._watch())

    async def _watch(self) -> None:
        """Watch the cluster until SIGTERM, which may arrive before kopf has started."""
        namespaces, stopping = self._settings.namespaces, asyncio.Event()
        where: dict[str, Any] = {"namespaces": list(namespaces)} if namespaces else {"clusterwide": True}

        async def relay() -> None:
            while not self._stopping.is_set():  # noqa: ASYNC110 - it is set by a signal's handler
                await asyncio.sleep(0.5)
            stopping.set()

        relay_task = asyncio.create_task(relay())
        try:
            await kopf.operator(
                registry=handlers.registry(self._queue, self._watchdog, self._cache, self._api.configuration),
                settings=handlers.settings(),
                standalone=True,
                stop_flag=stopping,
                **where,
            )
        finally:
            relay_task.cancel()

    def _require_resource(self) -> None:
        namespaces = self._settings.namespaces or (None,)
        self._api.list(PIPELINE, namespaces[0], metadata_only=True)

    def _make_controller(self) -> Controller:
        platform, settings = self._platform, self._settings
        context = PassContext.of(platform, settings, api=self._api, elector=self._elector, clusters=self._clusters)
        return Controller(
            context,
            recorder=self._recorder,
            observer=self._observer,
            metrics=self._metrics,
            scaling=self._scaling,
            progress=self._progress,
        )

    def _on_progress_change(self, key: Key, error: TidemillError | None) -> None:
        """Update a pipeline's status if the counting of its events has stopped or resumed."""
        if error is not None:
            self._controller.report_interruption(key, error)
        self._queue.add(key, reset_backoff=True)

    def _make_webhook(self) -> Webhook:
        settings = self._settings
        service, namespace = settings.webhook_service, settings.operator_namespace
        hosts = [f"{service}.{namespace}.svc", f"{service}.{namespace}.svc.cluster.local", f"{service}.{namespace}"]
        keeper = CertificateKeeper(self._api, namespace=namespace, name=settings.webhook_secret, hosts=hosts)
        return Webhook(
            self._api,
            keeper,
            port=settings.webhook_port,
            configuration=settings.webhook_configuration,
            limits=self._platform.limits,
        )

    def _ready(self) -> bool:
        """Return whether the replica can answer requests."""
        return not self._stopping.is_set() and (self._webhook is None or self._webhook.ready)

    def _live(self) -> bool:
        return not self._elector.leading or self._watchdog.alive

    def _health(self) -> tuple[int, dict[str, Any]]:
        healthy = self._live()
        body = {"status": "healthy" if healthy else "unhealthy", "leader": self._elector.leading}
        return (200 if healthy else 503), {**body, "pipelines": len(self._queue)}


def main(environ: Mapping[str, str] = os.environ) -> int:
    """Run the operator.

    Returns:
        The exit code: 0 after SIGTERM, 1 if the operator cannot run.
    """
    try:
        platform = Platform.from_env({**environ, "TIDEMILL_RUNTIME": "kubernetes"})
        settings = ClusterSettings.from_env(platform, environ)
    except (ValueError, OSError) as error:
        print(f"tidemill_operator: {error}", file=sys.stderr)
        return 1
    logging.basicConfig(level=settings.log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.Formatter.converter = time.gmtime
    logging.getLogger("kopf.objects").setLevel(logging.WARNING)  # kopf logs a line for each event
    try:
        return Operator(platform, settings).run()
    except NotFound as error:
        log.critical("the cluster has no resource AnalyticsPipeline: apply the chart's CRD first (%s)", error)
    except TidemillError as error:
        log.critical("%s", error)
    return 1
