"""One run of `up`: servers, workloads and the session over them, and what is told about them in files."""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tidemill_operator.actuators.local import LocalRuntime
from tidemill_operator.cli.session import Session
from tidemill_operator.cli.sources import Reading
from tidemill_operator.cli.store import Store, Stored
from tidemill_operator.local.child import start_time
from tidemill_operator.local.files import write_atomic
from tidemill_operator.servers import Servers, start_servers

Say = Callable[[str], None]
_SERVER_RESTART_SECONDS = 2.0
_RESILIENCE_FILE = Path("config/resilience.yaml")


class Run:
    """Everything that `up` holds between its start and its end. For one thread."""

    def __init__(self, data_dir: Path, *, args: argparse.Namespace, environ: Mapping[str, str], say: Say) -> None:
        self._data_dir = data_dir
        self._args = args
        self._environ = environ
        self._say = say
        self._servers = Servers()
        self._store = Store(data_dir / "state")
        self._runtime: LocalRuntime | None = None
        self._session: Session | None = None
        self._restarted: dict[str, float] = {}
        self._announced: str | None = None
        self._seen: Mapping[str, bool] = {}

    def start(self) -> None:
        """Start servers and supervision.

        Raises:
            ServerError: a server cannot be started.
        """
        self._servers = start_servers(self._data_dir, environ=self._environ, on_progress=self._say)
        self._runtime = LocalRuntime(
            self._data_dir,
            environ=self._environ,
            addresses=self._addresses(),
            ports={"ingest": self._args.port_ingest, "api": self._args.port_api},
        )
        self._runtime.start()
        self._session = Session(self._store, apply=self._apply, release=self._release, say=self._say)

    def take(self, reading: Reading) -> None:
        """Accept what the files say."""
        assert self._session is not None  # noqa: S101
        if not self._session.pipelines:
            for stored in self._store:
                if stored.key not in reading.documents:
                    self._say(
                        f"{stored.key}: ran here before and is in none of the files; it stays off, its data stays"
                    )
        self._session.take(reading)

    def step(self) -> None:
        """One round: servers that died are started again, due pipelines are reconciled, readers are told."""
        assert self._session is not None  # noqa: S101
        self._revive_servers()
        if self._look() != self._seen:
            self._seen = self._look()
            self._session.nudge()
        self._session.step()
        ready = self._session.ready
        self._report(ready=ready)
        if ready:
            self._announce()

    def close(self) -> None:
        """End everything that was started: workloads first, so that they can still commit."""
        if self._runtime is not None:
            self._runtime.close()
        self._servers.stop()
        (self._data_dir / "status.json").unlink(missing_ok=True)

    def _look(self) -> Mapping[str, bool]:
        """Which processes are ready: a change of this is worth a look at the pipelines."""
        assert self._runtime is not None  # noqa: S101
        return {name: state.ready for name, state in self._runtime.states().items()}

    def _addresses(self) -> dict[str, str]:
        """What every workload is told about the servers: no administrator's login."""
        postgres = self._servers.postgres
        addresses = {
            "TIDEMILL_KAFKA_BROKERS": self._servers.kafka,
            "TIDEMILL_POSTGRES_HOST": postgres.host,
            "TIDEMILL_POSTGRES_PORT": str(postgres.port),
            "TIDEMILL_POSTGRES_DATABASE": postgres.database,
            "TIDEMILL_POSTGRES_SSLMODE": postgres.sslmode,
            "TIDEMILL_REDIS_URL": self._servers.redis,
        }
        resilience = self._args.resilience or Path(self._environ.get("TIDEMILL_RESILIENCE_FILE") or _RESILIENCE_FILE)
        if self._args.resilience or resilience.exists():
            addresses["TIDEMILL_RESILIENCE_FILE"] = str(resilience.absolute())
        return addresses

    def _revive_servers(self) -> None:
        for name, server in self._servers.handles.items():
            if server.running or time.monotonic() - self._restarted.get(name, 0.0) < _SERVER_RESTART_SECONDS:
                continue
            self._say(f"{name} ended (exit status {server.exit_code}); it is started again; log: {server.log_file}")
            self._restarted[name] = time.monotonic()
            server.spawn()

    def _endpoints(self) -> dict[str, Mapping[str, str]]:
        assert self._session is not None  # noqa: S101
        assert self._runtime is not None  # noqa: S101
        pipelines = self._session.pipelines.values()
        names = [stored.name for stored in pipelines]
        return {
            stored.name if names.count(stored.name) == 1 else stored.key: self._runtime.endpoints(
                stored.namespace, stored.name
            )
            for stored in pipelines
        }

    def _announce(self) -> None:
        """Print the endpoints and write the ready file, if they are news."""
        addresses = {"kafka": self._servers.kafka, "postgres": self._servers.postgres.url, "redis": self._servers.redis}
        told = json.dumps({"pipelines": self._endpoints(), **addresses}, indent=1)
        if told == self._announced:
            return
        self._announced = told
        if self._args.ready_file is not None:
            write_atomic(self._args.ready_file.absolute(), told, mode=0o600)  # it holds a password
        for name, urls in self._endpoints().items():
            print(f"{name}:", *(f"{component} {url}" for component, url in urls.items()), sep="  ", flush=True)
        print("ready", flush=True)

    def _report(self, *, ready: bool) -> None:
        """Write `status.json`: what `tidemill status` and tests read."""
        assert self._session is not None  # noqa: S101
        assert self._runtime is not None  # noqa: S101
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
            stored.key: {
                "generation": stored.document["metadata"]["generation"],
                "ready": stored.ready,
                "endpoints": self._runtime.endpoints(stored.namespace, stored.name),
                "conditions": stored.status.get("conditions", []),
            }
            for stored in self._session.pipelines.values()
        }
        servers = {
            name: {"pid": server.pid, "port": server.port, "ready": server.running}
            for name, server in self._servers.handles.items()
        }
        postgres = self._servers.postgres.public_url
        report: dict[str, Any] = {
            "pid": os.getpid(),
            "started": start_time(os.getpid()),
            "ready": ready,
            "addresses": {"kafka": self._servers.kafka, "postgres": postgres, "redis": self._servers.redis},
            "pipelines": pipelines,
            "workloads": workloads,
            "servers": servers,
        }
        write_atomic(self._data_dir / "status.json", json.dumps(report, indent=1, default=str))

    def _apply(self, stored: Stored) -> Mapping[str, Any]:
        raise NotImplementedError(datetime.now(UTC))

    def _release(self, stored: Stored) -> None:
        raise NotImplementedError
