"""Writes the configuration of containerd, kubelet and kube-proxy, and returns their commands."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import yaml

from kube.api import Api, to_arguments
from kube.local import layout
from kube.local.layout import NODE_ADDRESS, NODE_NAME, PORTS, Layout
from tidemill_operator.processes.child import Command
from tidemill_operator.processes.files import write_atomic

CNI_PLUGINS = Path("/usr/lib/cni")
_GRACE_SECONDS = 15.0
_CONTAINERD = """\
version = 2
root = "{folder}/root"
state = "{folder}/state"
oom_score = 0
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs"]

[grpc]
address = "{socket}"

[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{pause_image}"
# Lowering the OOM score needs CAP_SYS_RESOURCE, which root lacks if this machine is itself a container.
restrict_oom_score_adj = true
netns_mounts_under_state_dir = true
stream_server_address = "127.0.0.1"

[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{cni_plugins}"
conf_dir = "{folder}/cni"

[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "{snapshotter}"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
Root = "{folder}/runc"
"""


def containerd_command(place: Layout) -> Command:
    """Return the command of containerd, and write its configuration and that of the pods' network."""
    folder = place.containerd
    text = _CONTAINERD.format(
        folder=folder,
        socket=place.socket,
        pause_image=layout.PAUSE_IMAGE,
        cni_plugins=CNI_PLUGINS,
        snapshotter=_snapshotter(place.folder),
    )
    write_atomic(folder / "config.toml", text)
    write_atomic(folder / "cni" / "10-tidemill.conflist", json.dumps(_pod_network(folder), indent=2))
    return program("containerd", ["containerd", "--config", str(folder / "config.toml")])


def kubelet_command(place: Layout, api: Api) -> Command:
    """Return the command of the kubelet, and write its configuration."""
    pair = api.authority.issue(
        "kubelet",
        common_name=f"system:node:{NODE_NAME}",
        organization="system:nodes",
        addresses=[NODE_ADDRESS],
        names=[NODE_NAME],
    )
    config = {
        **_kubelet_basics(place),
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": str(api.authority.certificate)},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": str(pair.certificate),
        "tlsPrivateKeyFile": str(pair.key),
    }
    flags = {
        "config": _write_yaml(place.folder / "kubelet.yaml", config),
        "kubeconfig": api.client_config("kubelet", user=pair),
        "root-dir": place.kubelet,
        "node-ip": NODE_ADDRESS,
        "hostname-override": NODE_NAME,
        "node-labels": "topology.kubernetes.io/zone=local",
    }
    return program("kubelet", [str(api.programs / "kubelet"), *to_arguments(flags)])


def proxy_command(place: Layout, api: Api) -> Command:
    """Return the command of kube-proxy, and write its configuration."""
    pair = api.authority.issue("kube-proxy", common_name="system:kube-proxy")
    config = {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "nftables",
        "bindAddress": NODE_ADDRESS,
        "healthzBindAddress": f"{NODE_ADDRESS}:{PORTS.proxy_health}",
        "metricsBindAddress": f"{NODE_ADDRESS}:{PORTS.proxy_metrics}",
        "clientConnection": {"kubeconfig": str(api.client_config("kube-proxy", user=pair))},
        "clusterCIDR": layout.POD_RANGE,
        "hostnameOverride": NODE_NAME,
        "nodePortAddresses": [f"{NODE_ADDRESS}/32"],
        "oomScoreAdj": 0,
        # Zero means that kube-proxy does not change the machine's settings, which may be read-only.
        "conntrack": {"maxPerCore": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
    }
    path = _write_yaml(place.folder / "kube-proxy.yaml", config)
    return program("kube-proxy", [str(api.programs / "kube-proxy"), f"--config={path}"])


def _kubelet_basics(place: Layout) -> dict[str, object]:
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": NODE_ADDRESS,
        "port": PORTS.kubelet,
        "healthzBindAddress": NODE_ADDRESS,
        "healthzPort": PORTS.kubelet_health,
        "containerRuntimeEndpoint": f"unix://{place.socket}",
        "clusterDomain": layout.CLUSTER_DOMAIN,
        "clusterDNS": [layout.DNS_ADDRESS],
        "resolvConf": "",
        "podLogsDir": str(place.pod_logs),
        "volumePluginDir": str(place.kubelet / "volume-plugins"),
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{layout.CGROUP}",
        "failCgroupV1": False,
        "failSwapOn": False,
        "enforceNodeAllocatable": [],
        "makeIPTablesUtilChains": False,
        "oomScoreAdj": 0,
        # A laptop's disk may be nearly full, and images from archives cannot be pulled again after their removal.
        "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
        "imageGCHighThresholdPercent": 100,
    }


def _pod_network(folder: Path) -> dict[str, object]:
    """Return a network in which the host routes the packets of all pods, so that its packet filter sees them."""
    addresses = {
        "type": "host-local",
        "dataDir": str(folder / "pod-addresses"),
        "ranges": [[{"subnet": layout.POD_RANGE}]],
        "routes": [{"dst": "0.0.0.0/0"}],
    }
    return {
        "cniVersion": "0.4.0",
        "name": "tidemill",
        "plugins": [{"type": "ptp", "ipMasq": False, "ipam": addresses}],
    }


def _snapshotter(folder: Path) -> str:
    """Return the snapshotter that works in a folder: an overlay cannot be stacked on another overlay."""
    best = ("", "")
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        mount_point, kind = left.split()[4], right.split()[0]
        if folder.is_relative_to(mount_point) and len(mount_point) >= len(best[0]):
            best = (mount_point, kind)
    return "native" if best[1] == "overlay" else "overlayfs"


def _write_yaml(path: Path, document: Mapping[str, object]) -> Path:
    write_atomic(path, yaml.safe_dump(dict(document), sort_keys=False), mode=0o600)
    return path


def program(name: str, arguments: list[str]) -> Command:
    """Return the command of a program of the node, which continues to run when this program ends."""
    # Without the caller's environment: the cluster's requests must not use an HTTP proxy.
    environment = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
    return Command(name, arguments, environment=environment, death_signal=0, grace_seconds=_GRACE_SECONDS)
