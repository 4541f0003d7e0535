"""Processes of a cluster's pods, where its node is this machine."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from running.hanging import stopped


def pids(pod: dict[str, Any]) -> list[int]:
    """Return the process ids of a pod's containers."""
    identities = [container["containerID"].rpartition("/")[2] for container in pod["status"]["containerStatuses"]]
    found = []
    for path in Path("/proc").glob("[0-9]*/cgroup"):
        with contextlib.suppress(OSError):
            text = path.read_text()
            if any(identity in text for identity in identities):
                found.append(int(path.parent.name))
    return found


@contextlib.contextmanager
def frozen(pods: Iterable[dict[str, Any]]) -> Iterator[None]:
    """Stop all processes of pods by SIGSTOP while the block runs: connections stay open, nothing answers."""
    found = {pod["metadata"]["name"]: pids(pod) for pod in pods}
    assert all(found.values()), f"pods without processes on this machine: {[name for name in found if not found[name]]}"
    with stopped([pid for of_pod in found.values() for pid in of_pod]):
        yield
