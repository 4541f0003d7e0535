"""Records the machine's state before `up`, so that `down` can restore it."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

from kube.local import network, policies
from kube.local.layout import Layout
from tidemill_operator.processes.files import write_atomic

# Folders that the node's programs create outside the cluster's folder, outermost first.
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
    """Record the machine's state, unless an earlier `up` has recorded it."""
    if not place.state.exists():
        missing = [str(path) for path in _FOLDERS if not path.exists()]
        state = {"forwarding": network.forwards(), "filter": network.has_table("filter"), "made": missing}
        write_atomic(place.state, json.dumps(state))


def restore(place: Layout) -> None:
    """Restore packet forwarding, and remove the table and the folders that did not exist before and are unused now."""
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
