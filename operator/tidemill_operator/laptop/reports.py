"""Reports of `up`: conditions, `status.json`, the scrape targets of Prometheus and the ready file."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from tidemill_operator.actuators.local.runtime import LocalRuntime
from tidemill_operator.laptop.figures import LocalFigures, key_of
from tidemill_operator.laptop.options import Options
from tidemill_operator.laptop.scaling import LocalScaling
from tidemill_operator.laptop.servers import Servers
from tidemill_operator.laptop.session import Session
from tidemill_operator.laptop.store import StoredPipeline
from tidemill_operator.observer.condition_metrics import ConditionExporter
from tidemill_operator.observer.progress import ProgressWatch
from tidemill_operator.processes.child import start_time
from tidemill_operator.processes.files import write_atomic
from tidemill_operator.status import not_counting_status


class CurrentConditions:
    """The current conditions of each pipeline. Ready is false if events are no longer counted."""

    def __init__(self, progress: ProgressWatch) -> None:
        self._progress = progress
        self._metrics = ConditionExporter()
        self._interrupted: dict[str, datetime] = {}

    def export(self, pipelines: Mapping[str, StoredPipeline]) -> None:
        """Export the conditions of the given pipelines to Prometheus, and remove all others."""
        self._metrics.keep_only(pipelines)
        for key, stored in pipelines.items():
            self._metrics.export(key, stored.namespace, stored.name, self.of(stored))

    def of(self, stored: StoredPipeline) -> Sequence[Mapping[str, Any]]:
        """Return a pipeline's conditions, with Ready false if events are no longer counted."""
        error = self._progress.error(key_of(stored))
        if error is None:
            self._interrupted.pop(stored.key, None)
            return list(stored.status.get("conditions", ()))
        since = self._interrupted.setdefault(stored.key, datetime.now(UTC))
        return list(not_counting_status(stored.status, error, since).get("conditions", ()))

    def is_interrupted(self, stored: StoredPipeline) -> bool:
        """Return True if the latest report of the pipeline says that events are no longer counted."""
        return stored.key in self._interrupted


class Reports:
    """Writes `status.json` and the other files that describe a run of `up`."""

    def __init__(
        self,
        options: Options,
        servers: Servers,
        *,
        runtime: LocalRuntime,
        session: Session,
        figures: LocalFigures,
        scaling: LocalScaling,
        conditions: CurrentConditions,
    ) -> None:
        self._options, self._servers, self._runtime, self._session = options, servers, runtime, session
        self._figures, self._scaling, self._conditions = figures, scaling, conditions
        self._announced = ""

    def close(self) -> None:
        """Remove `status.json`."""
        (self._options.data_dir / "status.json").unlink(missing_ok=True)

    def announce(self) -> None:
        """Print the endpoints and failures, and write the ready file, if anything has changed."""
        pipelines = list(self._session.pipelines.values())
        names = [stored.name for stored in pipelines]
        labels = {stored.key: stored.name if names.count(stored.name) == 1 else stored.key for stored in pipelines}
        reasons = self._session.failed
        failed = {labels[key]: reason for key, reason in reasons.items()}
        endpoints = {
            labels[stored.key]: dict(self._runtime.endpoints(stored.namespace, stored.name))
            for stored in pipelines
            if stored.key not in reasons
        }
        servers = {"kafka": self._servers.kafka, "postgres": self._servers.postgres.url, "redis": self._servers.redis}
        content = json.dumps({"pipelines": endpoints, **({"failed": failed} if failed else {}), **servers}, indent=1)
        if content == self._announced:
            return
        self._announced = content
        if self._options.ready_file is not None:
            write_atomic(self._options.ready_file, content, mode=0o600)  # the file contains a password
        for name, urls in endpoints.items():
            print(f"{name}:", *(f"{component} {url}" for component, url in urls.items()), sep="  ", flush=True)
        print("ready" if not failed else f"ready, except for {', '.join(failed)}", flush=True)

    def write(self, *, current: bool) -> None:
        """Write `status.json` and the scrape targets of Prometheus."""
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
        pipelines = {stored.key: self._describe(stored, current=current) for stored in self._session.pipelines.values()}
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

    def _describe(self, stored: StoredPipeline, *, current: bool) -> dict[str, Any]:
        """Return the description of a pipeline in `status.json`."""
        figures, conditions = self._figures.status(stored), self._conditions.of(stored)
        return {
            "generation": stored.document["metadata"]["generation"],
            "ready": current and stored.ready and not self._conditions.is_interrupted(stored),
            "endpoints": dict(self._runtime.endpoints(stored.namespace, stored.name)),
            "conditions": [*conditions, *figures.get("conditions", [])],
            "figures": {name: value for name, value in figures.items() if name != "conditions"},
            "aggregations": stored.status.get("aggregations", []),
            "connectors": stored.status.get("connectors", []),
            "replay": stored.status.get("replay", {}),
            **self._scaling.describe(stored.namespace, stored.name),
        }
