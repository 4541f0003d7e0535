"""Run workloads as child processes of this process, with configs as files below the data folder."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from tidemill_operator.actuators.local.process_specs import HOST, STOP_SECONDS, ProcessSpecs
from tidemill_operator.outcome import COMPONENT_OF_WORKLOAD, Outcome, done, waiting, with_missing_keys
from tidemill_operator.plan.model import Workload
from tidemill_operator.processes.files import write_atomic
from tidemill_operator.processes.supervisor import ReplicaState, Supervisor


@dataclass
class _RunningWorkload:
    workload: Workload
    pipelines: set[str] = field(default_factory=set)


class LocalRuntime:
    """Runs pipelines as processes on this computer.

    The class is thread-safe. No process runs before `start` is called.
    """

    def __init__(self, specs: ProcessSpecs) -> None:
        self._specs = specs
        self.config_root, self.secrets_root, self.references = specs.config_root, specs.secrets_root, specs.references
        self._workloads: dict[tuple[str, str], _RunningWorkload] = {}
        self._supervisor = Supervisor(specs.data_dir)
        self._lock = threading.RLock()

    def start(self) -> None:
        """Start the supervisor."""
        self._supervisor.start()

    def close(self) -> None:
        """End every process."""
        self._supervisor.close()

    def states(self) -> Mapping[str, ReplicaState]:
        """Return the state of every process, by `<namespace>.<workload>-<n>`."""
        return self._supervisor.states()

    def replicas(self, namespace: str, workload: str) -> list[ReplicaState]:
        """Return a workload's processes."""
        return [state for name, state in self.states().items() if name.rpartition("-")[0] == f"{namespace}.{workload}"]

    def ensure(self, workloads: Sequence[Workload]) -> list[Outcome]:
        """Start, update or end a pipeline's workloads, as the plan requires, without waiting."""
        pipelines = pipelines_of(workloads)
        changes = {workload.name: self.apply(workload, pipelines) for workload in workloads}
        if workloads:
            for pipeline in pipelines:
                self.release(workloads[0].namespace, pipeline, keep=changes)
        return [self._outcome(workload, changes[workload.name]) for workload in workloads]

    def _outcome(self, workload: Workload, changed: int) -> Outcome:
        component = COMPONENT_OF_WORKLOAD[workload.component]
        if self.is_ready(workload):
            return with_missing_keys(done(component, workload.name, changed=changed), self.references.missing(workload))
        states = self.replicas(workload.namespace, workload.name)
        updated, ready = sum(state.ready and state.current for state in states), sum(state.ready for state in states)
        message = f"{updated} of {workload.replicas} processes of {workload.name} run as specified, {ready} are ready"
        ended = [state for state in states if state.pid is None and state.last_exit is not None]
        if ended:
            message += f"; {ended[0].name} ended with exit status {ended[0].last_exit}, see {ended[0].log}"
        serving = ready > 0 or workload.replicas == 0 or workload.component == "replay"
        return waiting(component, workload.name, message, changed=changed, serving=serving)

    def observe(self, workloads: Sequence[Workload]) -> list[Outcome]:
        """Return the state of each running workload, without changing the workloads."""
        with self._lock:
            started = [self._workloads.get((workload.namespace, workload.name)) for workload in workloads]
        return [self._outcome(running.workload, 0) for running in started if running is not None]

    def apply(self, workload: Workload, pipelines: Iterable[str]) -> int:
        """Start or update a workload without waiting, and return the number of changes."""
        with self._lock:
            folder = self.config_root / workload.namespace
            changed = 0
            for name, text in workload.configs.items():
                changed += write_atomic(folder / name, text)
            changed += self.references.link(workload, self.secrets_root)
            running = self._workloads.setdefault((workload.namespace, workload.name), _RunningWorkload(workload))
            running.workload = workload
            running.pipelines.update(pipelines)
            for index in range(workload.replicas):
                name = f"{workload.namespace}.{workload.name}-{index}"
                changed += self._supervisor.set_desired(name, self._specs.make(workload, name))
            return changed + self._trim(workload.namespace, workload.name, workload.replicas)

    def is_ready(self, workload: Workload) -> bool:
        """Return whether the desired number of replicas runs, and all are ready and current."""
        states = self.replicas(workload.namespace, workload.name)
        return len(states) == workload.replicas and all(state.ready and state.current for state in states)

    def release(self, namespace: str, pipeline: str, *, keep: Iterable[str] = ()) -> bool:
        """End the workloads needed only by this pipeline.

        Return True if anything changed.
        """
        kept = set(keep)
        changed = False
        with self._lock:
            for (owner, name), running in list(self._workloads.items()):
                if owner != namespace or name in kept or pipeline not in running.pipelines:
                    continue
                changed = True
                running.pipelines.discard(pipeline)
                if not running.pipelines:
                    self._trim(namespace, name, 0)
                    del self._workloads[owner, name]
        return changed

    def remove(self, namespace: str, pipeline: str) -> None:
        """End a pipeline's own processes, wait for their end, and remove its config."""
        with self._lock:
            own = [
                name
                for (owner, name), running in self._workloads.items()
                if owner == namespace and running.pipelines == {pipeline}
            ]
            self.release(namespace, pipeline)
        deadline = time.monotonic() + STOP_SECONDS + 5.0
        while any(self.replicas(namespace, name) for name in own) and time.monotonic() < deadline:
            time.sleep(0.05)
        (self.config_root / namespace / f"{pipeline}.json").unlink(missing_ok=True)

    def endpoints(self, namespace: str, pipeline: str) -> Mapping[str, str]:
        """Return the base URLs of the pipeline's running ingest and API."""
        urls: dict[str, str] = {}
        with self._lock:
            candidates = [
                running.workload
                for (owner, _), running in self._workloads.items()
                if owner == namespace
                and pipeline in running.pipelines
                and running.workload.component in ("ingest", "api")
            ]
        # Sort shared processes first, so that URLs of the pipeline's own processes override shared URLs.
        for workload in sorted(candidates, key=lambda workload: workload.pipeline is not None):
            states = self.replicas(namespace, workload.name)
            if states:
                urls[workload.component] = f"http://{HOST}:{states[0].port}"
        return urls

    @property
    def target_host(self) -> str:
        """Return the address at which Prometheus reaches this machine."""
        return HOST if self._specs.host == HOST else socket.gethostname()

    def exists(self, namespace: str, pipeline: str) -> bool:
        """Return whether the pipeline has a config on this machine."""
        return (self.config_root / namespace / f"{pipeline}.json").exists()

    def targets(self) -> list[dict[str, object]]:
        """Return the scrape targets of all processes, in the format of Prometheus' file discovery."""
        host = self.target_host
        with self._lock:
            workloads = [(owner, running.workload) for (owner, _), running in self._workloads.items()]
        targets: list[dict[str, object]] = []
        for namespace, workload in workloads:
            labels = {"namespace": namespace, "component": workload.component}
            if workload.pipeline is not None:
                labels["pipeline"] = workload.pipeline
            states = self.replicas(namespace, workload.name)
            with self._lock:
                ports = [self._specs.status_port(state.name) or state.port for state in states]
            addresses = [f"{host}:{port}" for port in ports]
            targets.append({"targets": addresses, "labels": labels})
        return targets

    def _trim(self, namespace: str, workload: str, replicas: int) -> int:
        changed = 0
        for state in self.replicas(namespace, workload):
            if int(state.name.rpartition("-")[2]) >= replicas:
                changed += self._supervisor.set_desired(state.name, None)
                self._specs.forget(state.name)
        return changed


def pipelines_of(workloads: Sequence[Workload]) -> set[str]:
    """Return the workloads' pipelines."""
    pipelines = {workload.pipeline for workload in workloads if workload.pipeline is not None}
    return pipelines or {name.removesuffix(".json") for workload in workloads for name in workload.configs}
