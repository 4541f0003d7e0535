"""`make demo-k8s`: applies the demo's pipeline in a real cluster, and compares it with a batch recomputation.

The program starts a cluster, builds images, installs both charts, and applies the resource. Then it replays and
compares like `make demo`. Without --keep, it removes the pipeline at the end, and a cluster that it has started.
"""

from __future__ import annotations

import argparse
import sys
import time

import yaml
from rich.console import Console

from demo.cluster import ClusterPlatform
from demo.course import check_answers, command, send
from demo.data import ROOT, load_departures
from demo.installation import DEVELOPMENT_VALUES, Helm, Steps, prepare, remove_cluster
from demo.runtime import DemoError

EXAMPLE = ROOT / "crds" / "examples" / "flights.yaml"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="demo-k8s", description=__doc__)
    parser.add_argument("--keep", action="store_true", help="leave everything running")
    parser.add_argument(
        "--provider",
        choices=("auto", "kind", "local"),
        default="auto",
        help="provider of hack/cluster",
    )
    parser.add_argument("--events", type=int, help="send only the first N departures")
    return parser.parse_args()


def _demo(platform: ClusterPlatform, steps: Steps, console: Console, events: int | None) -> int:
    begun = time.monotonic()
    platform.start()
    steps.print_done(f"kubectl apply -f {EXAMPLE.relative_to(ROOT)}: pipeline is ready", begun)
    console.print(platform.table(), highlight=False)
    departures = load_departures()
    if events:
        departures = departures.head(events)
    console.print(f"ingest {platform.url('ingest')}, API {platform.url('api')}")
    totals = send(platform, departures, console)
    code = check_answers(platform, departures, totals, console)
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
            remove_cluster()
    removed = "pipeline, namespace, topics, schema" + (" and cluster" if started else "")
    steps.print_done(f"{removed} are removed", begun)
    return 0


def _run(arguments: argparse.Namespace, console: Console) -> int:
    steps = Steps(console)
    place = prepare(steps, arguments.provider)
    document = yaml.safe_load(EXAMPLE.read_text())
    # With `Retain`, a later demo would find a topic and a schema of another owner.
    document["spec"]["reclaimPolicy"] = "Delete"
    platform = ClusterPlatform(document, place.kubectl)
    code = 1
    try:
        helm = Helm(steps, place.kubeconfig, place.images, DEVELOPMENT_VALUES)
        helm.install_servers()
        helm.install_operator()
        code = _demo(platform, steps, console, arguments.events)
    finally:
        if arguments.keep:
            console.print(f"kept: export KUBECONFIG={place.kubeconfig}   dashboard: {_or_none(platform, 'api')}/")
        else:
            code = max(code, _clean(steps, console, platform, started=place.started))
    console.print(f"done after {steps.total():.0f} s")
    return code


def _or_none(platform: ClusterPlatform, component: str) -> str:
    try:
        return platform.url(component)
    except KeyError:
        return "none"


def main() -> int:
    """Run the program, and return its exit code."""
    arguments = _arguments()
    return command(lambda console: _run(arguments, console))


if __name__ == "__main__":
    sys.exit(main())
