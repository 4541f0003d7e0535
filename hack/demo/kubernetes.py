"""`make demo-k8s`: the demo's pipeline as one `kubectl apply` in a real cluster, compared with a batch recomputation.

Cluster, images, both charts, the resource; then the same replay and comparison as `make demo`. What it starts it
removes again (--keep leaves it); a cluster that was there before stays, with the charts.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from demo.cluster import OPERATOR_NAMESPACE, ClusterPlatform, Kubectl
from demo.course import command, judge, send
from demo.data import ROOT, load_departures
from demo.runtime import DemoError
from images.engine import Engine
from kube import binaries

EXAMPLE = ROOT / "crds" / "examples" / "flights.yaml"
CLUSTER = ROOT / "hack" / "cluster"
BUILT = ROOT / ".cache" / "images" / "built.json"
_DEVELOPMENT = "tidemill-dev/"
_INSTALL_TIMEOUT = "8m"


class Steps:
    """Runs the programs of the repository one after the other, telling what takes how long."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._began = time.monotonic()

    def run(self, title: str, command: Sequence[str | Path], **environment: str) -> str:
        """Run a program; what it printed.

        Raises:
            DemoError: it fails.
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
        self.tell(title, begun)
        return done.stdout

    def tell(self, title: str, begun: float) -> None:
        """Say that something is done."""
        self._console.print(f"{title} ({time.monotonic() - begun:.0f} s)", highlight=False)

    def total(self) -> float:
        """Seconds since the first step."""
        return time.monotonic() - self._began


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="demo-k8s", description=__doc__)
    parser.add_argument("--keep", action="store_true", help="leave everything running")
    parser.add_argument("--provider", choices=("auto", "kind", "local"), default="auto", help="of the cluster")
    parser.add_argument("--events", type=int, help="send only the first so many")
    return parser.parse_args()


def program(name: str) -> Path:
    """Helm or kubectl: those built with the cluster's programs, else those on the path.

    Raises:
        DemoError: neither is there.
    """
    built = binaries.find()
    found = str(built / name) if built else shutil.which(name)
    if found is None:
        raise DemoError(f"{name} is not on the path: install it, or build the cluster's programs with `make kube`")
    return Path(found)


def start_cluster(steps: Steps, provider: str) -> tuple[Path, bool]:
    """Start the cluster unless it is there.

    Returns:
        Its kubeconfig, and whether it was started.
    """
    there = subprocess.run([CLUSTER, "kubeconfig"], cwd=ROOT, capture_output=True, check=False).returncode == 0
    steps.run("cluster is up", [CLUSTER, "up", "--provider", provider])
    path = subprocess.run([CLUSTER, "kubeconfig"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    return Path(path), not there


def bring_images(steps: Steps, kubectl: Kubectl) -> dict[str, str]:
    """Build images and bring those into the cluster that it lacks.

    Returns:
        References by the image's short name; without the servers' where official images are pulled.
    """
    pulled = Engine().answers()
    steps.run("images are built", [ROOT / "hack" / "images" / "build", *([] if pulled else ["--dev"])])
    built = json.loads(BUILT.read_text())
    nodes = json.loads(kubectl("get", "nodes", "--output", "json"))["items"]
    there = {name for node in nodes for image in node["status"].get("images", ()) for name in image["names"]}
    sets = built["archives"] or built["images"]
    for given in sets:
        development = _DEVELOPMENT.rstrip("/") in given
        wanted = [image for image in built["images"] if image.startswith(_DEVELOPMENT) == development]
        if all(f"docker.io/{image}" in there for image in wanted):
            continue
        steps.run(f"images are loaded: {Path(given).name}", [CLUSTER, "load-images", given])
    return {image.partition("/")[2].partition(":")[0]: image for image in built["images"]}


def install(steps: Steps, kubeconfig: Path, images: dict[str, str]) -> None:
    """Install or upgrade both charts."""
    helm: list[str | Path] = [
        binaries.require() / binaries.HELM,
        "upgrade",
        "--install",
        "--wait",
        f"--timeout={_INSTALL_TIMEOUT}",
    ]
    helm += ["--kubeconfig", kubeconfig, "--namespace", OPERATOR_NAMESPACE, "--create-namespace"]
    servers = [f"{name}.image={image}" for name, image in images.items() if image.startswith(_DEVELOPMENT)]
    settings = [part for setting in servers for part in ("--set", setting)]
    steps.run(
        "Kafka (3 brokers), Postgres, Redis are ready", [*helm, "dev-stack", ROOT / "charts/dev-stack", *settings]
    )
    tag = images["operator"].rpartition(":")[2]
    values: list[str | Path] = ["--values", ROOT / "helm/dev/values.yaml", "--set-string", f"image.tag={tag}"]
    steps.run("the operator is ready", [*helm, "tidemill", ROOT / "charts/tidemill", *values])


def _demo(platform: ClusterPlatform, steps: Steps, console: Console, events: int | None) -> int:
    begun = time.monotonic()
    platform.start()
    steps.tell(f"kubectl apply -f {EXAMPLE.relative_to(ROOT)}: pipeline is ready", begun)
    console.print(platform.table(), highlight=False)
    departures = load_departures()
    if events:
        departures = departures.head(events)
    console.print(f"ingest {platform.url('ingest')}, API {platform.url('api')}")
    totals = send(platform, departures, console)
    code = judge(platform, departures, totals, console)
    console.print(platform.table(), highlight=False)
    return code


def _clean(steps: Steps, console: Console, platform: ClusterPlatform, *, started: bool) -> int:
    begun = time.monotonic()
    try:
        platform.stop()
    except DemoError as error:
        console.print(f"[red]{error}[/red]", highlight=False)
        return 1
    finally:
        if started:
            subprocess.run([CLUSTER, "down"], cwd=ROOT, capture_output=True, check=False)
    steps.tell("pipeline, namespace, topics and schema are removed" + (", and the cluster" if started else ""), begun)
    return 0


def _run(arguments: argparse.Namespace, console: Console) -> int:
    steps = Steps(console)
    kubeconfig, started = start_cluster(steps, arguments.provider)
    kubectl = Kubectl(program("kubectl"), kubeconfig)
    platform = ClusterPlatform(EXAMPLE, kubectl)
    code = 1
    try:
        install(steps, kubeconfig, bring_images(steps, kubectl))
        code = _demo(platform, steps, console, arguments.events)
    finally:
        if arguments.keep:
            console.print(f"kept: export KUBECONFIG={kubeconfig}   dashboard: {_or_none(platform, 'api')}/")
        else:
            code = max(code, _clean(steps, console, platform, started=started))
    console.print(f"done after {steps.total():.0f} s")
    return code


def _or_none(platform: ClusterPlatform, component: str) -> str:
    try:
        return platform.url(component)
    except KeyError:
        return "none"


def main() -> int:
    """Entry point; the exit code."""
    arguments = _arguments()
    return command(lambda console: _run(arguments, console))


if __name__ == "__main__":
    sys.exit(main())
