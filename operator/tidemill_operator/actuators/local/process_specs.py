"""Describe the processes of a workload on a laptop: their commands, environment and restarts."""

from __future__ import annotations

import contextlib
import hashlib
import socket
import sys
from collections.abc import Collection, Mapping
from pathlib import Path

from tidemill_contract.files import read_bytes
from tidemill_operator.actuators.local.references import References
from tidemill_operator.actuators.local.stage import stage_environment
from tidemill_operator.plan.model import Workload
from tidemill_operator.processes.child import Command
from tidemill_operator.processes.ports import Ports
from tidemill_operator.processes.replica import ReplicaSpec

HOST = "127.0.0.1"
STOP_SECONDS = 10.0
"""The seconds between SIGTERM and SIGKILL."""
# The TIDEMILL_ variables that workloads inherit. Workloads do not inherit the administrator's login.
_INHERITED_PREFIXES = (
    "TIDEMILL_RESILIENCE_", "TIDEMILL_KAFKA_CONFIG", "TIDEMILL_LOG_LEVEL", "TIDEMILL_INGEST_", "TIDEMILL_API_",
    "TIDEMILL_HTTP_", "TIDEMILL_SESSION_TIMEOUT_MS",
)  # fmt: skip


class ProcessSpecs:
    """Creates the specs of this machine's processes. Only one thread at a time may call the methods."""

    def __init__(
        self,
        data_dir: Path,
        *,
        environ: Mapping[str, str],
        addresses: Mapping[str, str],
        ports: Mapping[str, int] | None = None,
        reserved: Collection[int] = (),
        host: str = HOST,
    ) -> None:
        self.data_dir, self.host = data_dir, host
        self.config_root = data_dir / "pipelines"
        self.secrets_root = data_dir / "secrets"
        self.references = References(data_dir / "secret-refs", data_dir / "config-maps")
        inherited = {
            name: value
            for name, value in environ.items()
            if not name.startswith("TIDEMILL_") or name.startswith(_INHERITED_PREFIXES)
        }
        self._common = {**inherited, **addresses}
        # The list of allowed hosts prevents DNS rebinding. With DNS rebinding, a web page could read any pipeline whose
        # API needs no key.
        names = ["localhost", socket.gethostname(), *environ.get("TIDEMILL_ALLOWED_HOSTS", "").split(",")]
        self._allowed_hosts = ",".join(name for name in (*names, host) if name and ":" not in name)
        self._wanted_ports = dict(ports or {})
        self._ports = Ports(data_dir / "ports.json", reserved=reserved)
        self._assigned: dict[str, int] = {}

    def make(self, workload: Workload, name: str) -> ReplicaSpec:
        """Return a process's spec."""
        serves_http = "http" in workload.ports
        default_port = workload.ports["http" if serves_http else "status"]
        port = self._port(name, self._wanted_ports.get(workload.component, default_port))
        environment = {
            **self._common,
            **workload.environment,
            "TIDEMILL_NAMESPACE": workload.namespace,
            "TIDEMILL_HOST": self.host,
            "TIDEMILL_PORT": str(port),
            "TIDEMILL_ALLOWED_HOSTS": self._allowed_hosts,
            "TIDEMILL_CONFIG_DIR": str(self.config_root / workload.namespace),
            "TIDEMILL_SECRETS_DIR": str(self.secrets_root / workload.namespace),
            **self.references.environment(workload),
        }
        if serves_http:
            environment["TIDEMILL_STATUS_PORT"] = str(self._port(_status_key(name), workload.ports["status"]))
        if workload.pipeline is not None:
            environment["TIDEMILL_PIPELINE"] = workload.pipeline
        if workload.component == "stage":
            folder = self.references.config_map(workload, workload.code) if workload.code else None
            environment = stage_environment(environment, process=name, folder=folder)
        command = Command(
            name, (sys.executable, "-m", workload.module), environment=environment, grace_seconds=STOP_SECONDS
        )
        # A process reads its config and login only at its start. A new config or login therefore changes the revision.
        # A new revision restarts the process.
        revision = f"{workload.revision}{self._digest_of_secrets(workload)}" if workload.revision else ""
        return ReplicaSpec(command=command, port=port, ready_path=workload.readiness.path, revision=revision)

    def status_port(self, name: str) -> int | None:
        """Return a process's port for metrics and probes, or None without such a port."""
        return self._assigned.get(_status_key(name))

    def forget(self, name: str) -> None:
        """Release a process's ports."""
        for key in (name, _status_key(name)):
            self._assigned.pop(key, None)

    def _port(self, name: str, wanted: int) -> int:
        if name not in self._assigned:
            self._assigned[name] = self._ports.get(name, wanted=wanted)
        return self._assigned[name]

    def _digest_of_secrets(self, workload: Workload) -> str:
        folder, digest = self.secrets_root / workload.namespace, hashlib.sha256()
        for pipeline, files in sorted(workload.secrets.items()):
            for file in files:
                with contextlib.suppress(FileNotFoundError):
                    digest.update(read_bytes(folder / pipeline / file))
        return f".{digest.hexdigest()[:16]}"


def _status_key(name: str) -> str:
    return f"{name}/status"
