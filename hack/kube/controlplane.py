"""Runs a control plane without nodes for tests: etcd and a real API server on free loopback ports.

Both end with this process. Resources are validated, stored and watched, but no pod runs. With `controllers`, the
controller manager also runs: it deletes namespaces and owned objects, and creates service accounts and pods.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from kube import binaries
from kube.api import Api
from tidemill_operator.laptop.servers.server import Server
from tidemill_operator.processes.child import Command
from tidemill_operator.processes.files import write_atomic
from tidemill_operator.processes.ports import Ports

Progress = Callable[[str], None]
_READY_SECONDS = 120.0


class ControlPlane:
    """One control plane, which a `with` block starts and stops.

    Attributes:
        kubeconfig: The administrator's kubeconfig.
        url: The URL of the API server.
        audit_log: The file with all requests, if requests are logged.
    """

    def __init__(
        self,
        folder: Path,
        *,
        controllers: bool = False,
        audited: bool = False,
        on_progress: Progress | None = None,
    ) -> None:
        """Prepare a control plane, without starting it.

        Args:
            folder: The folder of its data, certificates and logs, which only this control plane uses.
            controllers: Whether the controller manager also runs.
            audited: Whether every request is logged as a JSON line in `audit.log` of the folder.
            on_progress: A function that is called with lines of progress.

        Raises:
            NotBuilt: The cluster's programs are not built.
        """
        self._on_progress = on_progress
        self._folder = folder
        self.audit_log = folder / "audit.log"
        ports = Ports(folder / "ports.json")
        self._api = Api(
            programs=binaries.require(),
            folder=folder,
            host="127.0.0.1",
            etcd_port=ports.get("etcd"),
            peer_port=ports.get("etcd-peer"),
            port=ports.get("kube-apiserver"),
            death_signal=signal.SIGKILL,
        )
        self.url = self._api.url
        self.kubeconfig = self._api.client_config("admin", user=self._api.admin)
        self._etcd = self._server(
            self._api.etcd_command(durable=False), port=self._api.etcd_port, ready=self._api.etcd_ready
        )
        flags = self._flags(controllers) | (self._audit() if audited else {})
        self._apiserver = self._server(
            self._api.server_command(flags), port=self._api.port, ready=self._api.server_ready
        )
        self._controllers = self._controller_manager(ports.get("kube-controller-manager")) if controllers else None

    def start(self) -> None:
        """Start all programs, and wait until they are ready.

        Raises:
            ServerError: A program ended or did not become ready. The message contains the end of its log.
        """
        try:
            self._etcd.start()
            self.start_apiserver()
            if self._controllers is not None:
                self._controllers.start()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop all programs, and keep the data in the folder."""
        if self._controllers is not None:
            self._controllers.stop()
        self.stop_apiserver()
        self._etcd.stop()

    def start_apiserver(self) -> None:
        """Start the API server unless it is running, on the same port as before, and wait until it is ready.

        Raises:
            ServerError: The API server ended or did not become ready.
        """
        self._apiserver.start()

    def stop_apiserver(self) -> None:
        """Stop only the API server."""
        self._apiserver.stop()

    def restart_apiserver(self) -> None:
        """Stop the API server and start it again on the same port.

        Raises:
            ServerError: The API server did not start again.
        """
        self._apiserver.restart()

    def __enter__(self) -> ControlPlane:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @staticmethod
    def _flags(controllers: bool) -> dict[str, object]:
        flags: dict[str, object] = {
            "authorization-mode": "RBAC",
            # An endpoint may not have a loopback address, and no test uses the service `kubernetes`.
            "endpoint-reconciler-type": "none",
            # Has room for the Services of hundreds of pipelines. Its first address is that of SERVICE_RANGE.
            "service-cluster-ip-range": "198.19.0.0/20",
            # Tests do not wait for open watches when they stop the API server.
            "shutdown-delay-duration": "0s",
        }
        if not controllers:
            # The plugin refuses pods without a service account. Only the controller manager creates these accounts.
            flags["disable-admission-plugins"] = "ServiceAccount"
        return flags

    def _audit(self) -> dict[str, object]:
        policy = {
            "apiVersion": "audit.k8s.io/v1",
            "kind": "Policy",
            "omitStages": ["RequestReceived"],
            "rules": [{"level": "Metadata"}],
        }
        path = self._folder / "audit.json"
        write_atomic(path, json.dumps(policy))
        return {"audit-policy-file": path, "audit-log-path": self.audit_log, "audit-log-mode": "batch"}

    def _controller_manager(self, port: int) -> Server:
        return self._server(
            self._api.controllers_command(port=port), port=port, ready=lambda: self._api.component_ready(port)
        )

    def _server(self, command: Command, *, port: int, ready: Callable[[], bool]) -> Server:
        return Server(
            command,
            port=port,
            data_dir=self._folder,
            ready=ready,
            on_progress=self._on_progress,
            ready_seconds=_READY_SECONDS,
        )
