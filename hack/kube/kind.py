"""Runs the cluster in containers with kind (https://kind.sigs.k8s.io), which needs privileged containers."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import yaml

from kube.binaries import CACHE
from kube.status import Health

Say = Callable[[str], None]
CONFIG = Path(__file__).with_name("kind.yaml")
_PROBE_SECONDS = 300.0


class KindError(RuntimeError):
    """A command of kind or Docker failed. The message contains its output."""


class KindCluster:
    """The cluster that kind.yaml describes.

    Attributes:
        kubeconfig: The administrator's kubeconfig.
    """

    def __init__(self) -> None:
        document = yaml.safe_load(CONFIG.read_text())
        self._name = str(document["name"])
        self.kubeconfig = CACHE / "kind.kubeconfig"

    def up(self, say: Say) -> None:
        """Create the cluster if it does not exist, and wait until its nodes are ready.

        Raises:
            KindError: kind fails. The message contains its output.
        """
        if self._exists():
            _kind("export", "kubeconfig", "--name", self._name, "--kubeconfig", str(self.kubeconfig))
            return
        say("kind creates the cluster; pulling its image may take minutes")
        self.kubeconfig.parent.mkdir(parents=True, exist_ok=True)
        options = ["--config", str(CONFIG), "--kubeconfig", str(self.kubeconfig), "--wait", "300s"]
        _kind("create", "cluster", *options)

    def down(self, say: Say) -> None:
        """Remove the cluster.

        Raises:
            KindError: kind fails.
        """
        if not self._exists():
            say("there is no cluster to remove")
            return
        _kind("delete", "cluster", "--name", self._name, "--kubeconfig", str(self.kubeconfig))
        self.kubeconfig.unlink(missing_ok=True)
        say("the cluster is removed")

    def health(self) -> list[Health]:
        """Return the state of each node's container, or an empty list if there is no cluster.

        Raises:
            KindError: kind or Docker fails.
        """
        if not self._exists():
            return []
        states = []
        for node in _kind("get", "nodes", "--name", self._name).split():
            status = _run(["docker", "inspect", "--format", "{{.State.Status}}", node]).strip()
            states.append(Health(node, well=status == "running", text=status))
        return states

    def load_images(self, names: Sequence[str], say: Say) -> None:
        """Load images of the Docker engine.

        Raises:
            KindError: kind fails.
        """
        _kind("load", "docker-image", "--name", self._name, *names)
        for name in names:
            say(f"loaded {name}")

    def load(self, archives: Sequence[Path], say: Say) -> None:
        """Load the images of archives.

        Raises:
            KindError: kind fails.
        """
        for path in archives:
            _kind("load", "image-archive", "--name", self._name, str(path))
            say(f"loaded {path}")

    def _exists(self) -> bool:
        return self._name in _kind("get", "clusters").split()


def why_not() -> str:
    """Return why kind cannot run on this machine, or an empty text if it can.

    The test runs a privileged container of the node's image, as kind would do.
    """
    for program in ("kind", "docker"):
        if shutil.which(program) is None:
            return f"{program} is not on the PATH"
    image = yaml.safe_load(CONFIG.read_text())["nodes"][0]["image"]
    for command, reason in (
        (["docker", "version"], "no Docker engine answers"),
        (
            ["docker", "run", "--rm", "--privileged", "--network=none", "--entrypoint=/bin/true", image],
            f"Docker cannot run a privileged container of {image}",
        ),
    ):
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_PROBE_SECONDS)
        except subprocess.TimeoutExpired:
            return f"{reason} within {_PROBE_SECONDS:.0f} s"
        if done.returncode != 0:
            return f"{reason} ({(done.stderr.strip().splitlines() or ['no reason given'])[-1]})"
    return ""


def _kind(*arguments: str) -> str:
    return _run(["kind", *arguments])


def _run(command: list[str]) -> str:
    if shutil.which(command[0]) is None:
        raise KindError(f"{command[0]} is not on the PATH: install it, or use --provider local")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise KindError(f"{' '.join(command)} failed: {done.stderr.strip()}")
    return done.stdout
