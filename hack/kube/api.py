"""The commands, certificates and readiness checks of the control plane's programs.

The control plane of tests and the cluster of this machine use them with different flags.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from kube import probe
from kube.kubeconfig import write_kubeconfig
from kube.pki import Authority, Pair
from tidemill_operator.processes.child import Command

SERVICE_RANGE = "198.19.0.0/24"
_API_SERVICE_ADDRESS = "198.19.0.1"
_GRACE_SECONDS = 5.0
_API_GRACE_SECONDS = 15.0


@dataclass(frozen=True)
class Api:
    """The addresses, certificates and commands of one control plane.

    Attributes:
        programs: The folder with the cluster's programs.
        folder: The folder of the certificates and the data.
        host: The address on which all programs listen.
        death_signal: The signal that each program gets when the process that started it ends. With 0, the program gets
            no signal and continues to run.
    """

    programs: Path
    folder: Path
    host: str
    etcd_port: int
    peer_port: int
    port: int
    death_signal: int

    @property
    def url(self) -> str:
        """The API server's URL."""
        return f"https://{self.host}:{self.port}"

    @cached_property
    def authority(self) -> Authority:
        """The authority that signs every certificate of the cluster."""
        return Authority(self.folder / "pki")

    @cached_property
    def admin(self) -> Pair:
        """The certificate of a user with all rights."""
        return self.authority.issue("admin", common_name="admin", organization="system:masters")

    @cached_property
    def service_accounts(self) -> Pair:
        """The keys that sign and verify service accounts' tokens."""
        return self.authority.issue("service-accounts", common_name="service-accounts")

    @cached_property
    def _etcd_pair(self) -> Pair:
        return self.authority.issue("etcd", common_name="etcd", addresses=sorted({"127.0.0.1", self.host}))

    def etcd_command(self, *, durable: bool) -> Command:
        """Return the command of etcd. Without `durable`, etcd does not flush writes to the disk."""
        pair, trust = self._etcd_pair, self.authority.certificate
        client, peer = f"https://{self.host}:{self.etcd_port}", f"https://{self.host}:{self.peer_port}"
        flags = {
            "name": "etcd",
            "data-dir": self.folder / "etcd",
            "listen-client-urls": client,
            "advertise-client-urls": client,
            "listen-peer-urls": peer,
            "initial-advertise-peer-urls": peer,
            "initial-cluster": f"etcd={peer}",
            "cert-file": pair.certificate,
            "key-file": pair.key,
            "trusted-ca-file": trust,
            "client-cert-auth": "true",
            "peer-cert-file": pair.certificate,
            "peer-key-file": pair.key,
            "peer-trusted-ca-file": trust,
            "peer-client-cert-auth": "true",
            "unsafe-no-fsync": "false" if durable else "true",
            "log-level": "warn",
        }
        return self._command("etcd", flags, grace_seconds=_GRACE_SECONDS)

    def server_command(self, further: Mapping[str, object]) -> Command:
        """Return the command of the API server, with further flags."""
        pki, accounts = self.authority, self.service_accounts
        serving = pki.issue(
            "kube-apiserver",
            common_name="kube-apiserver",
            addresses=sorted({"127.0.0.1", self.host, _API_SERVICE_ADDRESS}),
            names=("localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"),
        )
        etcd_client = pki.issue("kube-apiserver-etcd", common_name="kube-apiserver")
        flags = {
            "bind-address": self.host,
            "secure-port": self.port,
            "advertise-address": self.host,
            "etcd-servers": f"https://{self.host}:{self.etcd_port}",
            "etcd-cafile": pki.certificate,
            "etcd-certfile": etcd_client.certificate,
            "etcd-keyfile": etcd_client.key,
            "tls-cert-file": serving.certificate,
            "tls-private-key-file": serving.key,
            "client-ca-file": pki.certificate,
            "service-account-issuer": "https://kubernetes.default.svc.cluster.local",
            "service-account-key-file": accounts.certificate,
            "service-account-signing-key-file": accounts.key,
            "service-cluster-ip-range": SERVICE_RANGE,
            "allow-privileged": "true",
            "anonymous-auth": "false",
            "profiling": "false",
            **further,
        }
        return self._command("kube-apiserver", flags, grace_seconds=_API_GRACE_SECONDS)

    def controllers_command(self, *, port: int, further: Mapping[str, object] | None = None) -> Command:
        """Return the command of the controller manager."""
        flags = {
            "use-service-account-credentials": "true",
            "service-account-private-key-file": self.service_accounts.key,
            "root-ca-file": self.authority.certificate,
            **(further or {}),
        }
        return self.component_command("kube-controller-manager", port=port, flags=flags)

    def component_command(self, name: str, *, port: int, flags: Mapping[str, object]) -> Command:
        """Return the command of a component that is a client of the API server and serves its health at a port."""
        serving = self.authority.issue(name, common_name=f"system:{name}", addresses=[self.host])
        common = {
            "kubeconfig": self.client_config(name, user=serving),
            "bind-address": self.host,
            "secure-port": port,
            "tls-cert-file": serving.certificate,
            "tls-private-key-file": serving.key,
            # Each program has only one replica, which needs no election.
            "leader-elect": "false",
            "profiling": "false",
        }
        return self._command(name, {**common, **flags}, grace_seconds=_GRACE_SECONDS)

    def client_config(self, name: str, *, user: Pair) -> Path:
        """Write a kubeconfig with a client's certificate, and return its path."""
        return write_kubeconfig(
            self.folder / f"{name}.kubeconfig", server=self.url, authority=self.authority, user=user
        )

    def component_ready(self, port: int) -> bool:
        """Return whether the component with this health port is healthy."""
        return probe.answers(f"https://{self.host}:{port}/healthz", trust=self.authority.certificate)

    def etcd_ready(self) -> bool:
        """Return whether etcd answers and has loaded its data."""
        url = f"https://{self.host}:{self.etcd_port}/health"
        return probe.answers(url, trust=self.authority.certificate, client=self._etcd_pair)

    def server_ready(self) -> bool:
        """Return whether the API server answers and has completed its start."""
        return probe.answers(f"{self.url}/readyz", trust=self.authority.certificate, client=self.admin)

    def _command(self, name: str, flags: Mapping[str, object], *, grace_seconds: float) -> Command:
        return Command(
            name,
            [str(self.programs / name), *to_arguments(flags)],
            # Without the caller's environment: the cluster's requests must not use an HTTP proxy.
            environment={"PATH": os.defpath, "HOME": str(self.folder)},
            death_signal=self.death_signal,
            stop_signal=signal.SIGTERM,
            grace_seconds=grace_seconds,
        )


def to_arguments(flags: Mapping[str, object]) -> list[str]:
    """Return `--name=value` for each flag."""
    return [f"--{name}={value}" for name, value in flags.items()]
