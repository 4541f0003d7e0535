"""One run of `up`: starts servers and workloads, and reports their state in files."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from tidemill_operator.actuators.base import Actuators
from tidemill_operator.actuators.kafka.clusters import Clusters, secret_file_reader
from tidemill_operator.actuators.local.process_specs import ProcessSpecs
from tidemill_operator.actuators.local.runtime import LocalRuntime
from tidemill_operator.actuators.local.secrets import FileSecrets
from tidemill_operator.actuators.platform import connectors_actuator, topics_actuator
from tidemill_operator.actuators.postgres.schema import PostgresSchemas
from tidemill_operator.laptop.connect import LocalConnect
from tidemill_operator.laptop.figures import LocalFigures, key_of
from tidemill_operator.laptop.options import Options, platform_of, workload_addresses
from tidemill_operator.laptop.passes import PassRunner
from tidemill_operator.laptop.pipeline_files import FilesContent
from tidemill_operator.laptop.reports import CurrentConditions, Reports
from tidemill_operator.laptop.requests import Requests
from tidemill_operator.laptop.scaling import LocalScaling
from tidemill_operator.laptop.servers import Servers, start_servers
from tidemill_operator.laptop.session import Session
from tidemill_operator.laptop.store import Store, StoredPipeline
from tidemill_operator.observer.instruments import Instruments
from tidemill_operator.reconcile import reconcile, release
from tidemill_operator.settings import Platform

Say = Callable[[str], None]
_SERVER_RESTART_SECONDS = 2.0
_PASS_SECONDS = 0.2


class Run:
    """A running `up` with its servers, processes and session."""

    def __init__(self, options: Options, servers: Servers, *, environ: Mapping[str, str], say: Say) -> None:
        self._options, self._servers, self._say = options, servers, say
        self._runtime = _runtime(options, servers, environ)
        self._platform = platform_of(options, servers, environ)
        instruments = Instruments.of(self._platform, secret_file_reader(self._runtime.references.root))
        clusters, self._progress = instruments.clusters, instruments.progress
        self._connect = LocalConnect(
            options.data_dir, environ=environ, brokers=servers.kafka, secured=bool(self._platform.kafka_config),
            references_root=self._runtime.references.root, on_server=servers.set_connect, say=say,
        )  # fmt: skip
        self._actuators = _actuators(self._platform, self._runtime, clusters, self._connect)
        self._store = Store(options.data_dir / "state")
        self._requests = Requests(options.data_dir / "requests")
        self._scaling = LocalScaling(
            options.data_dir / "scaling", reader=instruments.reader, runtime=self._runtime, say=say
        )
        self._figures = LocalFigures(
            instruments.offset_reader,
            servers.postgres,
            clusters=clusters,
            host=options.host,
            say=say,
            progress=self._progress.update,
        )
        self._session = Session(self._store, apply=self._apply, release=self._release, say=say)
        self._passes = PassRunner(self._session.step)
        self._content: FilesContent | None = None
        self._conditions = CurrentConditions(self._progress)
        self._reports = Reports(
            options, servers, runtime=self._runtime, session=self._session,
            figures=self._figures, scaling=self._scaling, conditions=self._conditions,
        )  # fmt: skip
        self._restarted_at: dict[str, float] = {}
        self._started_triggers: object = None
        self._finished_triggers: object = None

    @classmethod
    def start(cls, options: Options, *, environ: Mapping[str, str], say: Say) -> Run:
        """Start the servers and the supervision of the workloads.

        Raises:
            ServerError: another process uses a requested port, or a server cannot be started.
            ValueError: a TIDEMILL_ variable has a wrong value.
        """
        Platform.from_env(environ)  # raises an error for wrong settings before a server starts
        options.ports.check(options.data_dir, options.host, say)
        reserved = options.ports.requested.values()
        servers = start_servers(options.data_dir, environ=environ, reserved=reserved, on_progress=say)
        try:
            run = cls(options, servers, environ=environ, say=say)
            run._runtime.start()
            run._scaling.start()
            run._figures.start()
        except BaseException:
            servers.stop()
            raise
        return run

    def submit(self, content: FilesContent) -> None:
        """Store the content of the files, and apply it as soon as no pass is running."""
        self._content = content

    def _apply_files(self, content: FilesContent) -> None:
        if not self._session.pipelines:
            for stored in self._store:
                if stored.key not in content.documents:
                    self._say(f"{stored.key} is not in these files, so this pipeline does not run; its data is kept")
        for key, folder in content.folders.items():
            self._runtime.references.set_fallback(key, folder)
        self._session.update_pipelines(content)
        self._scaling.watch((stored.namespace, stored.name) for stored in self._session.pipelines.values())

    def step(self) -> None:
        """Run one round.

        A round restarts ended servers, reconciles due pipelines, and reports the state.
        """
        self._restart_servers()
        triggers = self._pass_triggers()
        if self._passes.idle:
            self._finished_triggers = self._started_triggers
            if self._content is not None:
                self._apply_files(self._content)
                self._content = None
            if triggers != self._started_triggers:
                self._started_triggers = triggers
                self._session.request_passes()
            self._passes.start()
            # Most passes are short. Wait briefly, so that the report below contains the results of the passes.
            self._passes.wait(_PASS_SECONDS)
            self._finished_triggers = self._started_triggers if self._passes.idle else self._finished_triggers
        self._figures.watch(self._session.pipelines.values())
        self._conditions.export(self._session.pipelines)
        # The statuses are current only if nothing has changed since the last pass began.
        current = self._finished_triggers == triggers
        self._reports.write(current=current)
        if current and self._passes.idle and self._session.settled:
            self._reports.announce()

    def _pass_triggers(self) -> object:
        """Return the state whose changes trigger a pass: readiness, scaling, requests and errors."""
        ready = {name: state.ready for name, state in self._runtime.states().items()}
        requests = {
            key: self._requests.read(stored.namespace, stored.name) for key, stored in self._session.pipelines.items()
        }
        return ready, self._scaling.decisions(), requests, self._progress.errors()

    def close(self) -> None:
        """End the workloads, and then the servers, so that workloads can still commit."""
        self._passes.wait()
        self._figures.close()
        self._scaling.close()
        self._runtime.close()
        self._connect.close()
        self._servers.stop()
        self._reports.close()

    def _restart_servers(self) -> None:
        """Restart the servers whose process has ended."""
        for name, server in self._servers.handles.items():
            if server.running or time.monotonic() - self._restarted_at.get(name, 0.0) < _SERVER_RESTART_SECONDS:
                continue
            self._say(f"{name} ended (exit status {server.exit_code}) and is restarted; log: {server.log_file}")
            self._restarted_at[name] = time.monotonic()
            server.spawn()

    def _apply(self, stored: StoredPipeline) -> Mapping[str, Any]:
        status = reconcile(
            _with_requests(stored, self._requests),
            platform=self._platform,
            actuators=self._actuators,
            previous=stored.status or None,
            now=datetime.now(UTC),
            scaled_replicas=lambda running: self._scaling.replicas(running.metadata.namespace, running.metadata.name),
            progress_error=lambda: self._progress.error(key_of(stored)),
        )
        self._progress.watch(key_of(stored), stored.document, status)
        return {**status, **self._scaling.status(stored.namespace, stored.name)}

    def _release(self, stored: StoredPipeline) -> None:
        release({**stored.document, "status": stored.status}, platform=self._platform, actuators=self._actuators)
        self._scaling.forget(stored.namespace, stored.name)
        self._progress.forget(key_of(stored))
        self._requests.forget(stored.namespace, stored.name)


def _with_requests(stored: StoredPipeline, requests: Requests) -> Mapping[str, Any]:
    metadata = stored.document["metadata"]
    annotations = {**(metadata.get("annotations") or {}), **requests.read(stored.namespace, stored.name)}
    return {**stored.document, "metadata": {**metadata, "annotations": annotations}} if annotations else stored.document


def _runtime(options: Options, servers: Servers, environ: Mapping[str, str]) -> LocalRuntime:
    specs = ProcessSpecs(
        options.data_dir,
        environ=environ,
        addresses=workload_addresses(options, servers, environ),
        ports=options.ports.preferred,
        reserved=options.ports.requested.values(),
        host=options.host,
    )
    return LocalRuntime(specs)


def _actuators(platform: Platform, runtime: LocalRuntime, clusters: Clusters, local: LocalConnect) -> Actuators:
    return Actuators(
        kafka=topics_actuator(platform),
        postgres=PostgresSchemas(platform.postgres),
        secrets=FileSecrets(runtime.secrets_root),
        runtime=runtime,
        clusters=clusters,
        connect=connectors_actuator(platform) or local,
    )
