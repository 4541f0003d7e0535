"""Processes of a cluster's pods, where its node is this machine."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from signal import SIGCONT, SIGSTOP, Signals
from typing import Any


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


def send_signal(pod: dict[str, Any], number: Signals) -> int:
    """Send a signal to all processes of a pod, and return how many there were."""
    processes = pids(pod)
    for pid in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
    return len(processes)


@contextlib.contextmanager
def frozen(pods: Iterable[dict[str, Any]]) -> Iterator[None]:
    """Stop all processes of pods by SIGSTOP while the block runs: connections stay open, nothing answers."""
    stopped = list(pods)
    for pod in stopped:
        assert send_signal(pod, SIGSTOP), f"{pod['metadata']['name']} has no processes on this machine"
    try:
        yield
    finally:
        for pod in stopped:
            send_signal(pod, SIGCONT)
