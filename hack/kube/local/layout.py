"""The paths, addresses and ports of the local cluster.

All addresses are in the range for benchmarks (198.18.0.0/15), which no network routes. A node may not have a loopback
address, so a bridge without members has the node's address.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from kube.binaries import CACHE

WHOLE_RANGE = "198.18.0.0/15"
POD_RANGE = "198.18.0.0/17"
NODE_ADDRESS = "198.18.255.1"
DNS_ADDRESS = "198.19.0.10"
NODE_NAME = "node1"
CLUSTER_DOMAIN = "cluster.local"
BRIDGE = "tidemill-node"
NFT_TABLE = "tidemill"
CGROUP = "tidemill"
PAUSE_IMAGE = "tidemill.local/pause:1"
DEFAULT_FOLDER = CACHE / "cluster"
# Linux limits the path of a socket to 107 bytes. containerd and the kubelet append the rest.
_LONGEST_FOLDER = 60


@dataclass(frozen=True)
class Ports:
    """The ports of the components at the node's address."""

    etcd: int = 2379
    etcd_peer: int = 2380
    api: int = 6443
    kubelet: int = 10250
    kubelet_health: int = 10248
    proxy_metrics: int = 10249
    proxy_health: int = 10256
    controllers: int = 10257
    scheduler: int = 10259
    # The usual port of DNS: NetworkPolicies see packets after kube-proxy has replaced the Service's address and port.
    dns: int = 53
    dns_health: int = 10054
    dns_ready: int = 10055
    policies_health: int = 20244


PORTS = Ports()


@dataclass(frozen=True)
class Layout:
    """The files of one cluster, all below one folder."""

    folder: Path

    def check(self) -> None:
        """Refuse a folder whose sockets would have too long a path.

        Raises:
            ValueError: The folder's path is too long.
        """
        length = len(str(self.folder).encode())
        if length > _LONGEST_FOLDER:
            raise ValueError(
                f"{self.folder}: sockets below it would have too long a path ({length} bytes, at most"
                f" {_LONGEST_FOLDER}); choose a shorter one with --dir"
            )

    @property
    def kubeconfig(self) -> Path:
        """The administrator's kubeconfig."""
        return self.folder / "admin.kubeconfig"

    @property
    def containerd(self) -> Path:
        """The folder with containerd's images, containers and state."""
        return self.folder / "containerd"

    @property
    def socket(self) -> Path:
        """The socket of containerd."""
        return self.folder / "containerd.sock"

    @property
    def kubelet(self) -> Path:
        """The folder with the pods' volumes."""
        return self.folder / "kubelet"

    @property
    def pod_logs(self) -> Path:
        """The folder with the containers' output."""
        return self.folder / "pods"

    @property
    def state(self) -> Path:
        """The file with the machine's state before `up`, which `down` needs."""
        return self.folder / "machine.json"
