"""Starts and removes a cluster of local processes, which run as root and need neither images nor a container engine.

`up` starts the components that do not run. `down` removes every trace of them. Both may be repeated.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from images.packages import install_missing
from kube import binaries
from kube.api import Api
from kube.build import BuildError, build, find_go
from kube.local import archive, dns, machine, network, node, policies, removal
from kube.local.components import ENDING, Component, stages
from kube.local.layout import NODE_ADDRESS, NODE_NAME, PAUSE_IMAGE, PORTS, Layout
from kube.status import Health
from tidemill_operator.laptop.servers.server import Server
from tidemill_operator.processes.child import end_leftover, start_time
from tidemill_operator.processes.files import locked, write_atomic

Say = Callable[[str], None]
_READY_SECONDS = 120.0
# A machine runs one cluster at a time, so clusters of all folders share this lock.
_LOCK = Path("/run/tidemill-cluster.lock")
_LOCK_SECONDS = 300.0
_PACKAGES = {
    "containerd": "containerd",
    "runc": "runc",
    "ip": "iproute2",
    "nft": "nftables",
    "iptables": "iptables",
    "ipset": "ipset",
    "conntrack": "conntrack",
    str(node.CNI_PLUGINS / "ptp"): "containernetworking-plugins",
}


class ClusterError(RuntimeError):
    """The cluster cannot carry out a request. The message contains the reason."""


class LocalCluster:
    """One cluster in one folder.

    Attributes:
        kubeconfig: The administrator's kubeconfig.
    """

    def __init__(self, folder: Path) -> None:
        self._place = Layout(folder.resolve())
        self.kubeconfig = self._place.kubeconfig

    def exists(self) -> bool:
        """Return whether this cluster was started and not removed, healthy or not."""
        return network.owner() == self._place.folder

    def up(self, say: Say) -> None:
        """Start the components that do not run, and wait until pods can run.

        Raises:
            ClusterError: This program does not run as root.
            BuildError: The programs are not built and cannot be built.
            NetworkError: Another cluster is on this machine, or the network cannot be set up.
            ServerError: A program ended or did not become ready.
        """
        if os.geteuid() != 0:
            raise ClusterError("starting a cluster on this machine needs root; run the command with sudo")
        self._place.check()
        programs = build(say=say)
        install_missing(_PACKAGES)
        self._place.folder.mkdir(parents=True, exist_ok=True)
        with locked(_LOCK, wait_seconds=_LOCK_SECONDS):
            machine.remember(self._place)
            network.set_up(self._place)
            removal.make_cgroups()
            api = self._api(programs)
            api.client_config("admin", user=api.admin)
            stores, api_server, rest = stages(self._place, api)
            self._ensure(stores, say)
            self._load_pause(programs)
            self._ensure(api_server, say)
            self._apply([*dns.manifests(), *policies.permissions()])
            self._ensure(rest, say)
            self._kubectl("wait", "--for=create", "--timeout=60s", f"node/{NODE_NAME}")
            self._kubectl("wait", "--for=condition=Ready", "--timeout=60s", f"node/{NODE_NAME}")
            self._kubectl("wait", "--for=create", "--timeout=60s", "serviceaccount/default")

    def down(self, say: Say) -> None:
        """Remove the programs, pods, mounts, network, cgroups and files of the cluster.

        Raises:
            ClusterError: This program does not run as root.
        """
        folder, owner = self._place.folder, network.owner()
        if owner != folder and not folder.exists():
            say("there is no cluster to remove")
            return
        if os.geteuid() != 0:
            raise ClusterError("removing the cluster needs root; run the command with sudo")
        folder.mkdir(parents=True, exist_ok=True)
        with locked(_LOCK, wait_seconds=_LOCK_SECONDS):
            for name in ENDING:
                if name == "containerd" and owner in (folder, None):
                    removal.end_containers(self._place)
                if end_leftover(folder / "run" / f"{name}.pid"):
                    say(f"{name} has ended")
            if owner in (folder, None):
                policies.remove_rules()
                network.tear_down(self._place)
                removal.remove_cgroups()
                removal.unlink_outside(self._place)
                machine.restore(self._place)
            removal.remove_files(self._place)
        say("the cluster is removed")

    def health(self) -> list[Health]:
        """Return the state of each component, or an empty list if there is no cluster."""
        if not self.exists():
            return []
        parts = itertools.chain(*stages(self._place, self._api(binaries.FOLDER)))
        states = [self._health(component) for component in parts]
        return [*states, self._node_health()]

    def load(self, archives: Sequence[Path], say: Say) -> None:
        """Load the images of archives.

        Raises:
            RuntimeError: The cluster is not running, or containerd refuses an archive.
        """
        if not self._place.socket.exists():
            raise ClusterError("the cluster does not run; start it with `hack/cluster up`")
        for path in archives:
            for name in archive.load(path, socket=self._place.socket):
                say(f"loaded {name}")

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

    def _ensure(self, components: Sequence[Component], say: Say) -> None:
        """Start each component that does not run, is unhealthy or has changed inputs, and wait until all are ready."""
        servers = [
            Server(
                component.command,
                port=0,
                data_dir=self._place.folder,
                ready=component.ready,
                ready_seconds=_READY_SECONDS,
            )
            for component in components
            if not self._is_current(component)
        ]
        began = time.monotonic()
        for server in servers:
            server.spawn()
        for server in servers:
            server.wait_ready()
            say(f"{server.name} is ready ({time.monotonic() - began:.1f} s)")
        for component in components:
            write_atomic(self._inputs_file(component), component.inputs())

    def _is_current(self, component: Component) -> bool:
        try:
            same = self._inputs_file(component).read_text() == component.inputs()
        except FileNotFoundError:
            return False
        return same and self._runs(component.name) and component.ready()

    def _inputs_file(self, component: Component) -> Path:
        return self._place.folder / "run" / f"{component.name}.inputs"

    def _runs(self, name: str) -> bool:
        try:
            record = json.loads((self._place.folder / "run" / f"{name}.pid").read_text())
        except (FileNotFoundError, ValueError):
            return False
        return start_time(int(record["pid"])) == str(record["started"])

    def _health(self, component: Component) -> Health:
        name = component.name
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
            return Health(NODE_NAME, well=False, text=str(error).splitlines()[-1].rpartition(" failed: ")[2])
        ready, _, message = shown.partition(" ")
        return Health(NODE_NAME, well=ready == "True", text=message)

    def _load_pause(self, programs: Path) -> None:
        files = {"/pause": programs / binaries.PAUSE}
        path = archive.write_image(self._place.folder / "pause.tar", PAUSE_IMAGE, files=files, entrypoint=["/pause"])
        archive.load(path, socket=self._place.socket)

    def _apply(self, manifests: Sequence[Mapping[str, object]]) -> None:
        document = json.dumps({"apiVersion": "v1", "kind": "List", "items": list(manifests)})
        self._kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", stdin=document)

    def _kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        command = [str(binaries.FOLDER / "kubectl"), "--kubeconfig", str(self.kubeconfig), *arguments]
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise ClusterError(f"kubectl {' '.join(arguments)} failed: {done.stderr.strip()}")
        return done.stdout


def why_not() -> str:
    """Return why this machine cannot run such a cluster, or an empty text if it probably can.

    The test creates what containers need: namespaces, a mount, and a cgroup.
    """
    if os.geteuid() != 0:
        return "a cluster of local processes needs root; run the command with sudo"
    if binaries.find() is None:
        try:
            find_go()
        except BuildError as error:
            return str(error)
    if shutil.which("apt-get") is None and (lacking := [name for name in _PACKAGES if shutil.which(name) is None]):
        return f"not installed: {', '.join(lacking)}; install them, because this machine has no apt-get"
    probe = ["unshare", "--mount", "--net", "--pid", "--fork", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    done = subprocess.run(probe, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        return f"this machine allows no containers (`{' '.join(probe)}` failed): {done.stderr.strip()}"
    return removal.why_no_cgroups()
