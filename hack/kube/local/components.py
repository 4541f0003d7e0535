"""Groups the programs of the local cluster into the stages of its start."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kube import binaries, probe
from kube.api import Api
from kube.local import dns, node, policies
from kube.local.layout import NODE_ADDRESS, PORTS, Layout
from tidemill_operator.processes.child import Command

# The order in which programs end. The kubelet ends first, so that no new container starts.
ENDING = (
    "kubelet",
    "kube-proxy",
    "kube-netpol",
    "coredns",
    "kube-scheduler",
    "kube-controller-manager",
    "containerd",
    "kube-apiserver",
    "etcd",
)
_CONFIGURATION = {".yaml", ".toml", ".kubeconfig", ".crt"}


@dataclass(frozen=True)
class Component:
    """One program of the cluster.

    Attributes:
        ready: A function that returns whether the program is ready.
    """

    command: Command
    ready: Callable[[], bool]

    @property
    def name(self) -> str:
        """The program's name, which also names its log and its pid file."""
        return self.command.name

    def inputs(self) -> str:
        """Return a hash of the built programs, the arguments, and the configuration files that the arguments name."""
        digest = hashlib.sha256(binaries.built_from().encode())
        for argument in self.command.arguments:
            path = Path(argument.rpartition("=")[2])
            named = path.suffix in _CONFIGURATION or path.name == "Corefile"
            digest.update(argument.encode() + b"\0" + (path.read_bytes() if named and path.is_file() else b""))
        return digest.hexdigest()


def stages(place: Layout, api: Api) -> tuple[list[Component], list[Component], list[Component]]:
    """Return the stages of the start; the components of a stage start together.

    Also write the certificates that are missing, and the configuration files.
    """
    return _stores(place, api), [_api_server(api)], [*_controllers(api), *_node(place, api)]


def _stores(place: Layout, api: Api) -> list[Component]:
    def containerd_ready() -> bool:
        command = ["ctr", "--address", str(place.socket), "version"]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    return [
        Component(api.etcd_command(durable=True), api.etcd_ready),
        Component(node.containerd_command(place), containerd_ready),
    ]


def _api_server(api: Api) -> Component:
    kubelet_client = api.authority.issue(
        "kube-apiserver-kubelet", common_name="kube-apiserver", organization="system:masters"
    )
    flags = {
        "authorization-mode": "Node,RBAC",
        "enable-admission-plugins": "NodeRestriction",
        "kubelet-certificate-authority": api.authority.certificate,
        "kubelet-client-certificate": kubelet_client.certificate,
        "kubelet-client-key": kubelet_client.key,
        # By default, logs, exec and port-forward would need DNS for the node's name.
        "kubelet-preferred-address-types": "InternalIP",
    }
    return Component(api.server_command(flags), api.server_ready)


def _controllers(api: Api) -> list[Component]:
    signing = {
        "cluster-signing-cert-file": api.authority.certificate,
        "cluster-signing-key-file": api.authority.key,
    }
    controllers = api.controllers_command(port=PORTS.controllers, further=signing)
    scheduler = api.component_command("kube-scheduler", port=PORTS.scheduler, flags={})
    return [
        Component(controllers, lambda: api.component_ready(PORTS.controllers)),
        Component(scheduler, lambda: api.component_ready(PORTS.scheduler)),
    ]


def _node(place: Layout, api: Api) -> list[Component]:
    def answers(port: int, path: str) -> Callable[[], bool]:
        return lambda: probe.answers(f"http://{NODE_ADDRESS}:{port}{path}")

    return [
        Component(node.kubelet_command(place, api), answers(PORTS.kubelet_health, "/healthz")),
        # kube-proxy and kube-netpol wait for the Node object, which the kubelet creates.
        Component(node.proxy_command(place, api), answers(PORTS.proxy_health, "/livez")),
        Component(policies.policies_command(api), answers(PORTS.policies_health, "/healthz")),
        Component(dns.dns_command(place, api), answers(PORTS.dns_ready, "/ready")),
    ]
