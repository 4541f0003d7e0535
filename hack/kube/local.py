"""The cluster of this machine: Kubernetes' own programs as processes of root; nothing to pull, no container engine.

`up` starts what does not run, in order, and leaves it running; `down` removes every trace. Both may be repeated.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from images.packages import install_missing
from kube import archive, binaries, dns, machine, network, node, probe, removal
from kube.api import Api
from kube.build import build
from kube.layout import NODE_ADDRESS, NODE_NAME, PAUSE_IMAGE, PORTS, Layout
from kube.status import Health
from tidemill_operator.local.child import Command, end_leftover, start_time
from tidemill_operator.local.files import locked
from tidemill_operator.servers.server import Server

Say = Callable[[str], None]
_READY_SECONDS = 120.0
_LOCK_SECONDS = 300.0
_PACKAGES = {
    "containerd": "containerd",
    "runc": "runc",
    "ip": "iproute2",
    "nft": "nftables",
    "iptables": "iptables",
    "conntrack": "conntrack",
    str(node.CNI_PLUGINS / "ptp"): "containernetworking-plugins",
}
# The order in which programs are ended: nothing is to start a container while the others go.
_END = (
    "kubelet",
    "kube-proxy",
    "coredns",
    "kube-scheduler",
    "kube-controller-manager",
    "containerd",
    "kube-apiserver",
    "etcd",
)


class ClusterError(RuntimeError):
    """The cluster cannot do what is asked; the message tells why."""


@dataclass(frozen=True)
class _Component:
    command: Command
    ready: Callable[[], bool]
    port: int = 0


class LocalCluster:
    """One cluster in one folder.

    Attributes:
        kubeconfig: the administrator's.
    """

    def __init__(self, folder: Path) -> None:
        self._place = Layout(folder.resolve())
        self.kubeconfig = self._place.kubeconfig

    def there(self) -> bool:
        """Whether this cluster is on the machine, well or not."""
        return _has("ip") and network.owner() == self._place.folder

    def up(self, say: Say) -> None:
        """Start what does not run and wait until pods can run.

        Raises:
            ClusterError: we are not root.
            BuildError: the programs are not built and cannot be.
            NetworkError: another cluster is on this machine, or its network refuses.
            ServerError: a program ended or did not become ready.
        """
        if os.geteuid() != 0:
            raise ClusterError("a cluster on this machine needs root: run this with sudo")
        self._place.check()
        programs = build(say=say)
        install_missing(_PACKAGES)
        self._place.folder.mkdir(parents=True, exist_ok=True)
        with self._locked():
            machine.remember(self._place)
            network.set_up(self._place)
            removal.make_cgroups()
            api = self._api(programs)
            for component in self._control_plane(api):
                self._ensure(component, say)
            self._kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", stdin=dns.manifests())
            for component in self._node(api):
                self._ensure(component, say)
                if component.command.name == "containerd":
                    self._load_pause(programs)
            self._kubectl("wait", "--for=create", "--timeout=60s", f"node/{NODE_NAME}")
            self._kubectl("wait", "--for=condition=Ready", "--timeout=60s", f"node/{NODE_NAME}")
            self._kubectl("wait", "--for=create", "--timeout=60s", "serviceaccount/default")

    def down(self, say: Say) -> None:
        """Remove everything: programs, pods, mounts, network, cgroups, files.

        Raises:
            ClusterError: we are not root.
        """
        folder, owner = self._place.folder, network.owner() if _has("ip") else None
        if owner != folder and not folder.exists():
            say("no cluster is there")
            return
        if os.geteuid() != 0:
            raise ClusterError("the cluster's programs are root's: run this with sudo")
        folder.mkdir(parents=True, exist_ok=True)
        with self._locked():
            for name in _END:
                if name == "containerd" and owner in (folder, None):
                    removal.end_containers(self._place)
                if end_leftover(folder / "run" / f"{name}.pid"):
                    say(f"{name} has ended")
            if owner in (folder, None):
                network.tear_down(self._place)
                removal.remove_cgroups()
                removal.unlink_outside(self._place)
                machine.restore(self._place)
            removal.remove_files(self._place)
        say("the cluster is removed")

    def health(self) -> list[Health]:
        """How each component is; empty: there is no cluster."""
        if not self.there():
            return []
        api = self._api(binaries.FOLDER)
        found = [self._health(component) for component in (*self._control_plane(api), *self._node(api))]
        return [*found, self._node_health()]

    def load(self, archives: Sequence[Path], say: Say) -> None:
        """Load the images of archives.

        Raises:
            RuntimeError: the cluster is not up, or refuses an archive.
        """
        if not self._place.socket.exists():
            raise ClusterError("the cluster is not up: run `hack/cluster up` first")
        for path in archives:
            for name in archive.load(path, socket=self._place.socket):
                say(f"loaded {name}")

    def _locked(self) -> contextlib.AbstractContextManager[None]:
        # Beside the folder, which goes.
        folder = self._place.folder
        return locked(folder.with_name(f".{folder.name}.lock"), wait_seconds=_LOCK_SECONDS)

    def _api(self, programs: Path) -> Api:
        return Api(
            programs=programs,
            folder=self._place.folder,
            host=NODE_ADDRESS,
            etcd_port=PORTS.etcd,
            peer_port=PORTS.etcd_peer,
            port=PORTS.api,
            death_signal=0,
        )

    def _control_plane(self, api: Api) -> list[_Component]:
        api.client_config("admin", user=api.admin)
        kubelet_client = api.authority.issue(
            "kube-apiserver-kubelet", common_name="kube-apiserver", organization="system:masters"
        )
        flags = {
            "authorization-mode": "Node,RBAC",
            "enable-admission-plugins": "NodeRestriction",
            "kubelet-certificate-authority": api.authority.certificate,
            "kubelet-client-certificate": kubelet_client.certificate,
            "kubelet-client-key": kubelet_client.key,
            # By default the node's name would be looked up in DNS for logs, exec and port-forward.
            "kubelet-preferred-address-types": "InternalIP",
        }
        signing = {
            "cluster-signing-cert-file": api.authority.certificate,
            "cluster-signing-key-file": api.authority.key,
        }
        controllers = api.controllers_command(port=PORTS.controllers, further=signing)
        scheduler = api.component_command("kube-scheduler", port=PORTS.scheduler, flags={})
        return [
            _Component(api.etcd_command(durable=True), api.etcd_ready, PORTS.etcd),
            _Component(api.server_command(flags), api.server_ready, PORTS.api),
            _Component(controllers, lambda: api.component_ready(PORTS.controllers), PORTS.controllers),
            _Component(scheduler, lambda: api.component_ready(PORTS.scheduler), PORTS.scheduler),
        ]

    def _node(self, api: Api) -> list[_Component]:
        def answers(port: int, path: str) -> Callable[[], bool]:
            return lambda: probe.answers(f"http://{NODE_ADDRESS}:{port}{path}")

        return [
            _Component(node.containerd_command(self._place), self._containerd_ready),
            _Component(node.proxy_command(self._place, api), answers(PORTS.proxy_health, "/livez"), PORTS.proxy_health),
            _Component(dns.dns_command(self._place, api), answers(PORTS.dns_ready, "/ready"), PORTS.dns),
            _Component(
                node.kubelet_command(self._place, api), answers(PORTS.kubelet_health, "/healthz"), PORTS.kubelet
            ),
        ]

    def _containerd_ready(self) -> bool:
        command = ["ctr", "--address", str(self._place.socket), "version"]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    def _ensure(self, component: _Component, say: Say) -> None:
        name = component.command.name
        if self._runs(name) and component.ready():
            return
        began = time.monotonic()
        Server(
            component.command,
            port=component.port,
            data_dir=self._place.folder,
            ready=component.ready,
            ready_seconds=_READY_SECONDS,
        ).start()
        say(f"{name} is ready ({time.monotonic() - began:.1f} s)")

    def _runs(self, name: str) -> bool:
        try:
            record = json.loads((self._place.folder / "run" / f"{name}.pid").read_text())
        except (FileNotFoundError, ValueError):
            return False
        return start_time(int(record["pid"])) == str(record["started"])

    def _health(self, component: _Component) -> Health:
        name = component.command.name
        log = self._place.folder / "logs" / f"{name}.log"
        if not self._runs(name):
            return Health(name, well=False, text=f"does not run; see {log}")
        if not component.ready():
            return Health(name, well=False, text=f"runs, but is not ready; see {log}")
        return Health(name, well=True, text="ready")

    def _node_health(self) -> Health:
        condition = '.status.conditions[?(@.type=="Ready")]'
        query = f"jsonpath={{{condition}.status}} {{{condition}.message}}"
        try:
            shown = self._kubectl("get", "node", NODE_NAME, "-o", query, "--request-timeout=5s")
        except ClusterError as error:
            return Health(NODE_NAME, well=False, text=str(error))
        ready, _, message = shown.partition(" ")
        return Health(NODE_NAME, well=ready == "True", text=message)

    def _load_pause(self, programs: Path) -> None:
        files = {"/pause": programs / binaries.PAUSE}
        path = archive.write_image(self._place.folder / "pause.tar", PAUSE_IMAGE, files=files, entrypoint=["/pause"])
        archive.load(path, socket=self._place.socket)

    def _kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        command = [str(binaries.FOLDER / "kubectl"), "--kubeconfig", str(self.kubeconfig), *arguments]
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise ClusterError(f"kubectl {' '.join(arguments)} failed: {done.stderr.strip()}")
        return done.stdout


def _has(program: str) -> bool:
    return shutil.which(program) is not None
