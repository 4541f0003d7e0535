"""Runs a Kubernetes cluster for development on this machine, with one of two providers.

local: runs Kubernetes' programs as processes of root; pulls no image and needs no container engine.
kind: runs three nodes in containers; needs a Docker engine that may run privileged containers.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from images.engine import BuildError as ImageError
from kube import kind
from kube.ability import why_not
from kube.binaries import NotBuilt
from kube.build import BuildError
from kube.kind import KindCluster, KindError
from kube.local import network
from kube.local.cluster import ClusterError, LocalCluster
from kube.local.export import exported
from kube.local.layout import DEFAULT_FOLDER
from tidemill_operator.laptop.servers.errors import ServerError
from tidemill_operator.processes.files import LockTaken

_EXAMPLES = """\
examples:
  hack/cluster up                                  choose a provider, print the reason, start what does not run
  hack/cluster up --provider local
  export KUBECONFIG=$(hack/cluster kubeconfig)     then kubectl (also at .cache/kube/bin/kubectl), helm, …
  hack/cluster load-images tidemill/api:dev        images of the Docker engine
  hack/cluster load-images images.tar              archives of `docker save`
  hack/cluster check                               whether a cluster can run on this machine
  hack/cluster status                              the state of each component; exit status 1 unless all are healthy
  hack/cluster down                                remove the cluster with all files; may be repeated
"""
_FAILURES = (BuildError, ImageError, ClusterError, KindError, LockTaken, NotBuilt, ServerError, network.NetworkError)
Cluster = LocalCluster | KindCluster


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="hack/cluster",
        description=__doc__,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--provider", choices=("auto", "kind", "local"), default="auto", help="default: auto")
    common.add_argument(
        "--dir", type=Path, default=DEFAULT_FOLDER, help="folder of the local provider's files and data"
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="COMMAND")
    actions.add_parser("up", parents=[common], help="start the cluster and wait until pods can run")
    actions.add_parser("down", parents=[common], help="remove the cluster and everything that belongs to it")
    actions.add_parser("check", parents=[common], help="check whether a cluster can run here; exit status 1: it cannot")
    actions.add_parser("status", parents=[common], help="print the state of each component")
    load = actions.add_parser("load-images", parents=[common], help="load images into the cluster")
    load.add_argument("images", nargs="+", metavar="IMAGE", help="name in the Docker engine, or path of an archive")
    actions.add_parser("kubeconfig", parents=[common], help="print the path of the administrator's kubeconfig")
    return parser.parse_args()


def _choose(arguments: argparse.Namespace) -> Cluster:
    """Return the requested cluster. `auto` means an existing cluster, or else a provider that this machine can run."""
    local = LocalCluster(arguments.dir)
    if arguments.provider == "local":
        return local
    if arguments.provider == "kind":
        return KindCluster()
    if local.exists():
        return local
    if KindCluster().kubeconfig.exists():
        return KindCluster()
    if arguments.action != "up":
        return local
    reason = kind.why_not()
    _say(f"provider local: {reason}" if reason else "provider kind: Docker runs privileged containers here")
    return local if reason else KindCluster()


def _check(provider: str) -> int:
    reason = why_not(provider)
    _say(f"no cluster can run on this machine: {reason}" if reason else "a cluster can run on this machine")
    return 1 if reason else 0


def _up(cluster: Cluster) -> int:
    began = time.monotonic()
    cluster.up(_say)
    _say(f"the cluster is up ({time.monotonic() - began:.0f} s)")
    _say(f"export KUBECONFIG={cluster.kubeconfig}")
    return 0


def _down(cluster: Cluster) -> int:
    cluster.down(_say)
    return 0


def _status(cluster: Cluster) -> int:
    health = cluster.health()
    for part in health:
        print(f"{'ok' if part.well else 'BAD':4} {part.name:24} {part.text}")
    if not health:
        print("there is no cluster; start one with `hack/cluster up`")
    return 0 if health and all(part.well for part in health) else 1


def _load(cluster: Cluster, images: list[str]) -> int:
    archives = [Path(image) for image in images if Path(image).is_file()]
    names = [image for image in images if not Path(image).is_file()]
    cluster.load(archives, _say)
    if names and isinstance(cluster, KindCluster):
        cluster.load_images(names, _say)
    elif names:
        with exported(names) as archive:
            cluster.load([archive], _say)
    return 0


def _kubeconfig(cluster: Cluster) -> int:
    if not cluster.kubeconfig.exists():
        raise ClusterError("there is no cluster; start one with `hack/cluster up`")
    print(cluster.kubeconfig)
    return 0


def _run(arguments: argparse.Namespace) -> int:
    if arguments.action == "check":
        return _check(arguments.provider)
    cluster = _choose(arguments)
    match arguments.action:
        case "up":
            return _up(cluster)
        case "down":
            return _down(cluster)
        case "status":
            return _status(cluster)
        case "load-images":
            return _load(cluster, arguments.images)
        case _:
            return _kubeconfig(cluster)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> int:
    """Run the program, and return its exit code."""
    try:
        return _run(_arguments())
    except KeyboardInterrupt:
        return 130
    except (*_FAILURES, RuntimeError, ValueError) as error:
        print(f"hack/cluster: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
