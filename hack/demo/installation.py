"""Prepares a cluster on this machine, and installs both charts, for the demo and the end-to-end tests."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from demo.cluster import OPERATOR_NAMESPACE, Kubectl
from demo.data import ROOT
from demo.runtime import DemoError
from images.engine import Engine
from kube import binaries

CLUSTER = ROOT / "hack" / "cluster"
BUILT = ROOT / ".cache" / "images" / "built.json"
CHARTS = ROOT / "charts"
DEVELOPMENT_VALUES = ROOT / "helm" / "dev" / "values.yaml"
_DEVELOPMENT = "tidemill-dev/"
_INSTALL_TIMEOUT = "8m"


class Steps:
    """Runs programs one after another, and prints the duration of each."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._began = time.monotonic()

    def run(self, title: str, command: Sequence[str | Path], **environment: str) -> str:
        """Run a program and return its output.

        Raises:
            DemoError: The program fails. The message contains its output.
        """
        begun = time.monotonic()
        done = subprocess.run(
            [str(part) for part in command],
            cwd=ROOT,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise DemoError(f"{title}: exit status {done.returncode}:\n{(done.stdout + done.stderr)[-3000:]}")
        self.print_done(title, begun)
        return done.stdout

    def print_done(self, title: str, begun: float) -> None:
        """Print that a step is done, with its duration."""
        self._console.print(f"{title} ({time.monotonic() - begun:.0f} s)", highlight=False)

    def total(self) -> float:
        """Return the seconds since the first step."""
        return time.monotonic() - self._began


def program(name: str) -> Path:
    """Return the path of Helm or kubectl, from the built programs of the cluster or from the PATH.

    Raises:
        DemoError: The program is not built, and not on the PATH.
    """
    built = binaries.find()
    path = str(built / name) if built else shutil.which(name)
    if path is None:
        raise DemoError(f"{name} is not on the PATH; install it, or build the cluster's programs with `make kube`")
    return Path(path)


def start_cluster(steps: Steps, provider: str) -> tuple[Path, bool]:
    """Start the cluster unless it is running.

    Returns:
        The cluster's kubeconfig, and whether this call started the cluster.
    """
    existed = subprocess.run([CLUSTER, "kubeconfig"], cwd=ROOT, capture_output=True, check=False).returncode == 0
    steps.run("cluster is up", [CLUSTER, "up", "--provider", provider])
    path = subprocess.run([CLUSTER, "kubeconfig"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    return Path(path), not existed


@contextlib.contextmanager
def building_images(steps: Steps) -> Iterator[Callable[[], list[str]]]:
    """Build images while the block runs. At the end of the block, a build that is not finished is stopped.

    Yields:
        A function that waits for the build, and returns the references of the built images. It raises DemoError if the
        build fails. The servers' images are only built if no Docker engine runs, which could pull official images.
    """
    begun = time.monotonic()
    options = [] if Engine().answers() else ["--dev"]
    command = [str(ROOT / "hack" / "images" / "build"), *options]
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=output, stderr=output)

        def finish() -> list[str]:
            if process.wait() != 0:
                output.seek(0)
                raise DemoError(f"images are not built: exit status {process.returncode}:\n{output.read()[-3000:]}")
            steps.print_done("images are built", begun)
            return list(json.loads(BUILT.read_text())["images"])

        try:
            yield finish
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()


def load_images(steps: Steps, kubectl: Kubectl, images: Sequence[str]) -> None:
    """Load the built images that the cluster does not have yet.

    Raises:
        DemoError: The cluster refuses an image.
    """
    nodes = json.loads(kubectl("get", "nodes", "--output", "json"))["items"]
    present = {name for node in nodes for image in node["status"].get("images", ()) for name in image["names"]}
    for archive in json.loads(BUILT.read_text())["archives"] or images:
        development = _DEVELOPMENT.rstrip("/") in archive
        wanted = [image for image in images if image.startswith(_DEVELOPMENT) == development]
        if not all(f"docker.io/{image}" in present for image in wanted):
            steps.run(f"images are loaded: {Path(archive).name}", [CLUSTER, "load-images", archive])


@dataclass(frozen=True)
class Place:
    """A running cluster that contains the images.

    Attributes:
        kubeconfig: The administrator's kubeconfig.
        images: The references of the images that were built on this machine.
        started: Whether `prepare` started the cluster.
    """

    kubeconfig: Path
    kubectl: Kubectl
    images: list[str]
    started: bool


def prepare(steps: Steps, provider: str) -> Place:
    """Start the cluster if necessary, and load the images. After a failure, a cluster that was started is removed.

    Raises:
        DemoError: The cluster does not start, or an image cannot be built or loaded.
    """
    with building_images(steps) as built:
        kubeconfig, started = start_cluster(steps, provider)
        try:
            kubectl = Kubectl(program("kubectl"), kubeconfig)
            images = built()
            load_images(steps, kubectl, images)
        except BaseException:
            if started:
                remove_cluster()
            raise
    return Place(kubeconfig, kubectl, images, started)


def remove_cluster() -> None:
    """Remove the cluster with all of its data."""
    subprocess.run([CLUSTER, "down"], cwd=ROOT, capture_output=True, check=False)


class Helm:
    """Runs Helm in the operator's namespace of one cluster.

    Args:
        steps: The runner of programs, which prints each installation.
        kubeconfig: The kubeconfig of the cluster.
        images: The references of the images that were built on this machine.
        values: The file with values of the operator's chart.
    """

    def __init__(self, steps: Steps, kubeconfig: Path, images: Sequence[str], values: Path) -> None:
        self._steps = steps
        self._command: list[str | Path] = [program(binaries.HELM), "--kubeconfig", kubeconfig]
        self._command += ["--namespace", OPERATOR_NAMESPACE]
        names = {image.partition("/")[2].partition(":")[0]: image for image in images}
        self._servers = [f"{name}.image={image}" for name, image in names.items() if image.startswith(_DEVELOPMENT)]
        self._tag = names["operator"].rpartition(":")[2]
        self._values = values

    def install_servers(self) -> None:
        """Install or upgrade Kafka, Postgres, Redis and Prometheus.

        Raises:
            DemoError: A server does not become ready in time.
        """
        settings = [part for setting in self._servers for part in ("--set", setting)]
        self._upgrade("Kafka (3 brokers), Postgres, Redis are ready", "dev-stack", CHARTS / "dev-stack", *settings)

    def install_operator(self, *settings: str, chart: Path = CHARTS / "tidemill") -> None:
        """Install or upgrade the operator.

        Args:
            settings: Values as `name=value`, which override values of the file.
            chart: A chart that is used in place of the chart of this repository.

        Raises:
            DemoError: The operator does not become ready in time.
        """
        further = [part for setting in settings for part in ("--set", setting)]
        tag = ["--set-string", f"image.tag={self._tag}"]
        self._upgrade("the operator is ready", "tidemill", chart, "--values", self._values, *tag, *further)

    def uninstall_operator(self) -> None:
        """Remove the operator.

        Raises:
            DemoError: Helm fails, or does not end in time.
        """
        arguments = ["uninstall", "tidemill", "--wait", "--timeout=3m"]
        self._steps.run("the operator is removed", [*self._command, *arguments])

    def _upgrade(self, title: str, release: str, chart: Path, *arguments: str | Path) -> None:
        common = ["upgrade", "--install", "--create-namespace", "--wait", f"--timeout={_INSTALL_TIMEOUT}"]
        self._steps.run(title, [*self._command, *common, release, chart, *arguments])
