"""Notes the machine's state before `up` in a file of the cluster, so that `down` can restore the state."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

from kube.local import network, policies
from kube.local.layout import Layout
from tidemill_operator.processes.files import write_atomic

# What the node's programs make outside the cluster's folder, outermost first.
_FOLDERS = (
    Path("/var/lib/cni"),
    Path("/var/lib/cni/results"),
    Path("/var/lib/kubelet"),
    Path("/var/lib/kubelet/device-plugins"),
    Path("/var/log/containers"),
    Path("/run/containerd"),
    Path("/run/containerd/s"),
)


def remember(place: Layout) -> None:
    """Note how the machine is, unless an `up` before this one has."""
    if not place.state.exists():
        made = [str(path) for path in _FOLDERS if not path.exists()]
        state = {"forwarding": network.forwards(), "filter": network.has_table("filter"), "made": made}
        write_atomic(place.state, json.dumps(state))


def restore(place: Layout) -> None:
    """Undo what was changed: packet forwarding; table and folders that were not there and hold nothing of others."""
    try:
        state = json.loads(place.state.read_text())
    except (FileNotFoundError, ValueError):
        return
    network.forward(str(state["forwarding"]))
    if not state.get("filter", True) and not policies.rules():
        network.drop_table("filter")
    for path in map(Path, reversed(state["made"])):
        (path / "kubelet.sock").unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            path.rmdir()
