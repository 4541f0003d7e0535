"""Processes of pods in a cluster whose node is this machine."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from running.hanging import stopped


def pids(pod: dict[str, Any]) -> list[int]:
    """Return the process ids of a pod's containers."""
    identities = [container["containerID"].rpartition("/")[2] for container in pod["status"]["containerStatuses"]]
    pids_of_pod = []
    for path in Path("/proc").glob("[0-9]*/cgroup"):
        with contextlib.suppress(OSError):
            text = path.read_text()
            if any(identity in text for identity in identities):
                pids_of_pod.append(int(path.parent.name))
    return pids_of_pod


@contextlib.contextmanager
def frozen(pods: Iterable[dict[str, Any]]) -> Iterator[None]:
    """Stop all processes of pods by SIGSTOP during the block. Connections stay open, and nothing answers."""
    by_pod = {pod["metadata"]["name"]: pids(pod) for pod in pods}
    assert all(by_pod.values()), f"pods without processes here: {[name for name in by_pod if not by_pod[name]]}"
    with stopped([pid for of_pod in by_pod.values() for pid in of_pod]):
        yield
