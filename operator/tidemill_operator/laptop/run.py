"""One run of `up`: starts servers, workloads and the session, and reports their state in files."""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tidemill_operator.actuators.base import Actuators
from tidemill_operator.actuators.connect.client import ConnectClient
from tidemill_operator.actuators.connect.connectors import KafkaConnect
from tidemill_operator.actuators.kafka.clusters import ANSWER_SECONDS, Clusters, keys_in_files
from tidemill_operator.actuators.kafka.log import KafkaLog
from tidemill_operator.actuators.kafka.session import KafkaSession
from tidemill_operator.actuators.kafka.topics import KafkaTopics
from tidemill_operator.actuators.local.runtime import LocalRuntime
from tidemill_operator.actuators.local.secrets import FileSecrets
from tidemill_operator.actuators.postgres.schema import PostgresSchemas
from tidemill_operator.laptop.connect import LocalConnect
from tidemill_operator.laptop.figures import LocalFigures, key_of
from tidemill_operator.laptop.passes import Passes
from tidemill_operator.laptop.ports import WantedPorts
from tidemill_operator.laptop.requests import Requests
from tidemill_operator.laptop.scaling import LocalScaling
from tidemill_operator.laptop.servers import Servers, start_servers
from tidemill_operator.laptop.servers.connect import secret_reference
from tidemill_operator.laptop.session import Session
from tidemill_operator.laptop.sources import Reading
from tidemill_operator.laptop.store import Store, Stored
from tidemill_operator.observer.condition_metrics import Conditions
from tidemill_operator.observer.controllers import Controllers
from tidemill_operator.observer.observer import KAFKA_SECONDS
from tidemill_operator.observer.progress import ProgressWatch
from tidemill_operator.observer.scaling_figures import FiguresReader
from tidemill_operator.observer.writes import Writes
from tidemill_operator.processes.child import start_time
from tidemill_operator.processes.files import write_atomic
from tidemill_operator.reconcile import reconcile, release
from tidemill_operator.settings import Platform
from tidemill_operator.status import interrupted

Say = Callable[[str], None]
_SERVER_RESTART_SECONDS = 2.0
_PASS_SECONDS = 0.2
_RESILIENCE_FILE = Path("config/resilience.yaml")


@dataclass(frozen=True)
class Options:
    """The options of the command line.

    Attributes:
        data_dir: the folder of data, state and logs.
        ready_file: the file for the endpoints, written when each pipeline is ready or has failed, or None.
        ports: the wanted ports of ingest and API.
        host: the address at which the processes listen.
        targets_file: the file for the scrape targets of Prometheus, or None.
        resilience_file: policies of the workloads. None means the file that the environment names, else the file in
            `config/` if it exists.
    """

    data_dir: Path
    ready_file: Path | None
    ports: WantedPorts
    resilience_file: Path | None
    host: str = "127.0.0.1"
    targets_file: Path | None = None

    @classmethod
    def of(cls, args: argparse.Namespace) -> Options:
        """Create the options from parsed arguments."""
        return cls(
            data_dir=args.data_dir.absolute(),
            ready_file=args.ready_file.absolute() if args.ready_file else None,
            ports=WantedPorts.of(args),
            resilience_file=args.resilience,
            host=args.host,
            targets_file=args.targets_file.absolute() if args.targets_file else None,
        )


class Run:
    """A running `up` with its servers, processes and session. Only one thread may use it.

    Args:
        options: the options of the command line.
        servers: the running servers.
        environ: environment variables, which the processes inherit.
        say: prints a line of progress.
    """

    def __init__(self, options: Options, servers: Servers, *, environ: Mapping[str, str], say: Say) -> None:
        self._options, self._servers, self._say = options, servers, say
        self._runtime = LocalRuntime(
            options.data_dir,
            environ=environ,
            addresses=_addresses(servers, _resilience_file(options, environ)),
            ports=options.ports.first,
            reserved=options.ports.named.values(),
            host=options.host,
        )
        self._platform = _platform(options, servers, environ)
        own = KafkaSession(servers.kafka, self._platform.kafka_config, ANSWER_SECONDS)
        clusters = Clusters(keys_in_files(self._runtime.references.root), own)
        self._connect = LocalConnect(
            options.data_dir, environ=environ, brokers=servers.kafka, secured=bool(self._platform.kafka_config),
            references_root=self._runtime.references.root, running=servers.take_connect, say=say,
        )  # fmt: skip
        self._actuators = _actuators(self._platform, servers, self._runtime, clusters, self._connect)
        self._store = Store(options.data_dir / "state")
        self._requests = Requests(options.data_dir / "requests")
        self._scaling = LocalScaling(
            options.data_dir / "scaling",
            reader=FiguresReader(
                servers.kafka, servers.postgres, config=self._platform.kafka_config, clusters=clusters
            ),
            runtime=self._runtime,
            say=say,
        )
        kafka_log = KafkaLog(servers.kafka, config=self._platform.kafka_config, timeout_seconds=KAFKA_SECONDS)
        self._progress = ProgressWatch(
            unled=Controllers(kafka_log.led).silent_seconds, refused=Writes.of(servers.postgres).refusal
        )
        self._figures = LocalFigures(
            kafka_log, servers.postgres, clusters=clusters, host=options.host, say=say, progress=self._progress.take
        )
        self._session = Session(self._store, apply=self._apply, release=self._release, say=say)
        self._passes = Passes(self._session.step)
        self._reading: Reading | None = None
        self._conditions = Conditions()
        self._revived: dict[str, float] = {}
        self._interrupted: dict[str, datetime] = {}
        self._announced = ""
        self._seen: object = None
        self._passed: object = None

    @classmethod
    def start(cls, options: Options, *, environ: Mapping[str, str], say: Say) -> Run:
        """Start servers and supervision.

        Raises:
            ServerError: another process uses a requested port, or a server cannot be started.
            ValueError: a TIDEMILL_ variable has a wrong value.
        """
        Platform.from_env(environ)  # reports wrong settings before anything is started
        options.ports.check(options.data_dir, options.host, say)
        reserved = options.ports.named.values()
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

    def take(self, reading: Reading) -> None:
        """Accept the content of the files as soon as no pass is running."""
        self._reading = reading

    def _take(self, reading: Reading) -> None:
        if not self._session.pipelines:
            for stored in self._store:
                if stored.key not in reading.documents:
                    self._say(
                        f"{stored.key} ran here before, but is not in these files: it is not run, and its data is kept"
                    )
        for key, folder in reading.folders.items():
            self._runtime.references.place(key, folder)
        self._session.take(reading)
        self._scaling.watch((stored.namespace, stored.name) for stored in self._session.pipelines.values())

    def step(self) -> None:
        """Run one round: restart servers that ended, reconcile due pipelines, and report the state."""
        self._revive_servers()
        seen = self._sees()
        if self._passes.idle:
            self._passed = self._seen
            if self._reading is not None:
                self._take(self._reading)
                self._reading = None
            if seen != self._seen:
                self._seen = seen
                self._session.nudge()
            self._passes.start()
            # Most passes are short, so wait a moment to report the result in this round.
            self._passes.wait(_PASS_SECONDS)
            self._passed = self._seen if self._passes.idle else self._passed
        self._figures.watch(self._session.pipelines.values())
        self._tell_conditions()
        # The result of the last pass counts only if nothing has changed since the pass began.
        current = self._passed == seen
        self._report(current=current)
        if current and self._passes.idle and self._session.settled:
            self._announce()

    def _sees(self) -> object:
        """Return the facts, apart from specs, that passes depend on. A pass is due when these facts have changed."""
        ready = {name: state.ready for name, state in self._runtime.states().items()}
        asked = {key: self._requests.read(one.namespace, one.name) for key, one in self._session.pipelines.items()}
        return ready, self._scaling.decisions(), asked, self._progress.errors()

    def close(self) -> None:
        """End everything that was started. Workloads end first, so that they can still commit."""
        self._passes.wait()
        self._figures.close()
        self._scaling.close()
        self._runtime.close()
        self._connect.close()
        self._servers.stop()
        (self._options.data_dir / "status.json").unlink(missing_ok=True)

    def _revive_servers(self) -> None:
        """Restart servers whose process has ended. A frozen server is left alone, because it may be resumed."""
        for name, server in self._servers.handles.items():
            if server.running or time.monotonic() - self._revived.get(name, 0.0) < _SERVER_RESTART_SECONDS:
                continue
            self._say(f"{name} ended (exit status {server.exit_code}) and is restarted; log: {server.log_file}")
            self._revived[name] = time.monotonic()
            server.spawn()

    def _announce(self) -> None:
        """Print the endpoints and failures, and write the ready file, if they have changed."""
        pipelines = list(self._session.pipelines.values())
        names = [stored.name for stored in pipelines]
        called = {stored.key: stored.name if names.count(stored.name) == 1 else stored.key for stored in pipelines}
        reasons = self._session.failed
        failed = {called[key]: reason for key, reason in reasons.items()}
        endpoints = {
            called[stored.key]: dict(self._runtime.endpoints(stored.namespace, stored.name))
            for stored in pipelines
            if stored.key not in reasons
        }
        servers = {"kafka": self._servers.kafka, "postgres": self._servers.postgres.url, "redis": self._servers.redis}
        told = json.dumps({"pipelines": endpoints, **({"failed": failed} if failed else {}), **servers}, indent=1)
        if told == self._announced:
            return
        self._announced = told
        if self._options.ready_file is not None:
            write_atomic(self._options.ready_file, told, mode=0o600)  # the file contains a password
        for name, urls in endpoints.items():
            print(f"{name}:", *(f"{component} {url}" for component, url in urls.items()), sep="  ", flush=True)
        print("ready" if not failed else f"ready, except for {', '.join(failed)}", flush=True)

    def _tell_conditions(self) -> None:
        """Export the conditions of all pipelines to Prometheus."""
        pipelines = self._session.pipelines
        self._conditions.keep(pipelines)
        for key, stored in pipelines.items():
            self._conditions.tell(key, stored.namespace, stored.name, self._conditions_of(stored))

    def _conditions_of(self, stored: Stored) -> Sequence[Mapping[str, Any]]:
        """Return the conditions of the last pass. Ready is false if events are no longer counted."""
        error = self._progress.error(key_of(stored))
        if error is None:
            self._interrupted.pop(stored.key, None)
            return list(stored.status.get("conditions", ()))
        since = self._interrupted.setdefault(stored.key, datetime.now(UTC))
        return list(interrupted(stored.status, error, since).get("conditions", ()))

    def _report(self, *, current: bool) -> None:
        """Write `status.json`, which `tidemill status` and tests read, and the scrape targets of Prometheus."""
        if self._options.targets_file is not None:
            targets = [*self._runtime.targets(), self._figures.target(self._runtime.target_host)]
            write_atomic(self._options.targets_file, json.dumps(targets, indent=1))
        workloads = {
            name: {
                "pid": state.pid,
                "port": state.port,
                "ready": state.ready,
                "restarts": state.restarts,
                "last_exit": state.last_exit,
                "log": state.log,
            }
            for name, state in self._runtime.states().items()
        }
        pipelines = {
            stored.key: self._described(stored, current=current) for stored in self._session.pipelines.values()
        }
        servers = {
            name: {"pid": server.pid, "port": server.port, "ready": server.running}
            for name, server in self._servers.handles.items()
        }
        postgres = self._servers.postgres.public_url
        report: dict[str, Any] = {
            "pid": os.getpid(),
            "started": start_time(os.getpid()),
            "ready": self._session.ready and all(pipeline["ready"] for pipeline in pipelines.values()),
            "addresses": {"kafka": self._servers.kafka, "postgres": postgres, "redis": self._servers.redis},
            "pipelines": pipelines,
            "workloads": workloads,
            "servers": servers,
        }
        write_atomic(self._options.data_dir / "status.json", json.dumps(report, indent=1, default=str))

    def _described(self, stored: Stored, *, current: bool) -> dict[str, Any]:
        """Return the description of a pipeline in `status.json`."""
        figures, conditions = self._figures.status(stored), self._conditions_of(stored)
        return {
            "generation": stored.document["metadata"]["generation"],
            "ready": current and stored.ready and stored.key not in self._interrupted,
            "endpoints": dict(self._runtime.endpoints(stored.namespace, stored.name)),
            "conditions": [*conditions, *figures.get("conditions", [])],
            "figures": {name: value for name, value in figures.items() if name != "conditions"},
            "aggregations": stored.status.get("aggregations", []),
            "connectors": stored.status.get("connectors", []),
            "replay": stored.status.get("replay", {}),
            "scaling": dict(self._scaling.status(stored.namespace, stored.name)),
            "decisions": self._scaling.history(stored.namespace, stored.name),
        }

    def _apply(self, stored: Stored) -> Mapping[str, Any]:
        status = reconcile(
            _asked(stored, self._requests),
            platform=self._platform,
            actuators=self._actuators,
            previous=stored.status or None,
            now=datetime.now(UTC),
            scaled=lambda running: self._scaling.replicas(running.metadata.namespace, running.metadata.name),
            standing=lambda: self._progress.error(key_of(stored)),
        )
        self._progress.watch(key_of(stored), stored.document, status)
        scaling = self._scaling.status(stored.namespace, stored.name)
        return {**status, "scaling": scaling} if scaling else status

    def _release(self, stored: Stored) -> None:
        release({**stored.document, "status": stored.status}, platform=self._platform, actuators=self._actuators)
        self._scaling.forget(stored.namespace, stored.name)
        self._progress.forget(key_of(stored))
        self._requests.forget(stored.namespace, stored.name)


def _asked(stored: Stored, requests: Requests) -> Mapping[str, Any]:
    """Return the document, with the annotations that commands have requested."""
    metadata = stored.document["metadata"]
    annotations = {**(metadata.get("annotations") or {}), **requests.read(stored.namespace, stored.name)}
    return {**stored.document, "metadata": {**metadata, "annotations": annotations}} if annotations else stored.document


def _platform(options: Options, servers: Servers, environ: Mapping[str, str]) -> Platform:
    given = Platform.from_env({**environ, "TIDEMILL_RUNTIME": "local"})
    return replace(
        given,
        connect_secrets=given.connect_secrets if given.connect_url else secret_reference(options.data_dir),
        kafka_brokers=servers.kafka,
        postgres=servers.postgres,
        redis_url=servers.redis,
        ports={"processor": 0, **options.ports.first},
    )


def _actuators(
    platform: Platform, servers: Servers, runtime: LocalRuntime, clusters: Clusters, local: LocalConnect
) -> Actuators:
    return Actuators(
        kafka=KafkaTopics(
            servers.kafka,
            config=platform.kafka_config,
            throttle_bytes=platform.replication_throttle,
            offsets_replicas=platform.offsets_replication,
        ),
        postgres=PostgresSchemas(servers.postgres),
        secrets=FileSecrets(runtime.secrets_root),
        runtime=runtime,
        clusters=clusters,
        connect=KafkaConnect(ConnectClient(platform.connect_url)) if platform.connect_url else local,
    )


def _resilience_file(options: Options, environ: Mapping[str, str]) -> Path | None:
    named = options.resilience_file or environ.get("TIDEMILL_RESILIENCE_FILE")
    if named:
        return Path(named).absolute()
    return _RESILIENCE_FILE.absolute() if _RESILIENCE_FILE.exists() else None


def _addresses(servers: Servers, resilience_file: Path | None) -> dict[str, str]:
    """Return the environment variables of all workloads: the servers' addresses, without the administrator's login."""
    postgres = servers.postgres
    addresses = {
        "TIDEMILL_KAFKA_BROKERS": servers.kafka,
        "TIDEMILL_POSTGRES_HOST": postgres.host,
        "TIDEMILL_POSTGRES_PORT": str(postgres.port),
        "TIDEMILL_POSTGRES_DATABASE": postgres.database,
        "TIDEMILL_POSTGRES_SSLMODE": postgres.sslmode,
        "TIDEMILL_POSTGRES_CA": postgres.sslrootcert,
        "TIDEMILL_REDIS_URL": servers.redis,
        "TIDEMILL_REDIS_CA": servers.redis_ca,
    }
    if resilience_file is not None:
        addresses["TIDEMILL_RESILIENCE_FILE"] = str(resilience_file)
    return addresses
