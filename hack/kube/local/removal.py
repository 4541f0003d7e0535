"""Removes what remains of a cluster after the end of its programs: processes, mounts, cgroups and sockets.

It ends only processes in the cluster's cgroups and shims of its socket, and unmounts only below its folder.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from kube.local.layout import CGROUP, Layout

_CGROUPS = Path("/sys/fs/cgroup")
_NETWORK_RESULTS = Path("/var/lib/cni/results")
_POD_LOG_LINKS = Path("/var/log/containers")
_DEADLINE_SECONDS = 20.0


def end_containers(place: Layout) -> None:
    """Kill the processes of all pods, and their shims."""
    deadline = time.monotonic() + _DEADLINE_SECONDS
    sockets = [
        path.read_text().strip().removeprefix("unix://") for path in place.containerd.glob("state/*/*/*/address")
    ]
    while pids := [*_pods_processes(), *_shims(place)]:
        if time.monotonic() > deadline:
            raise RuntimeError(
                f"processes {pids} of the cluster did not end within {_DEADLINE_SECONDS:.0f} s of SIGKILL; try again"
            )
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)
    for name in sockets:
        Path(name).unlink(missing_ok=True)


def remove_files(place: Layout) -> None:
    """Unmount everything below the cluster's folder, and remove the folder."""
    for mounted in reversed(_mounts(place.folder)):
        subprocess.run(["umount", "--lazy", str(mounted)], capture_output=True, check=False)
    shutil.rmtree(place.folder, ignore_errors=True)


def unlink_outside(place: Layout) -> None:
    """Remove what the node's programs wrote to fixed places outside the folder."""
    for link in _POD_LOG_LINKS.glob("*"):
        if link.is_symlink() and place.folder in Path(os.readlink(link)).parents:
            link.unlink()
    for result in _NETWORK_RESULTS.glob("*"):
        if str(place.folder) in result.read_text():
            result.unlink()


def remove_cgroups() -> None:
    """Remove the empty cgroups of the pods."""
    for folder in _cgroups():
        for path, _, _ in os.walk(folder, topdown=False):
            with contextlib.suppress(OSError):  # The kernel may still count the last process.
                os.rmdir(path)


def make_cgroups() -> None:
    """Create the parent cgroup of all pods in every hierarchy."""
    for root in _hierarchies():
        folder = root / CGROUP
        folder.mkdir(exist_ok=True)
        for name in ("cpuset.cpus", "cpuset.mems"):  # In version 1, both are empty at first, which bars processes.
            if (root / name).exists():
                (folder / name).write_text((root / name).read_text())


def why_no_cgroups() -> str:
    """Return why cgroups for pods cannot be created, or an empty text if they can."""
    roots = _hierarchies()
    if not roots:
        return f"no cgroups are mounted at {_CGROUPS}; mount them there"
    for root in roots:
        probe = root / f"{CGROUP}-probe-{os.getpid()}"
        try:
            probe.mkdir()
            probe.rmdir()
        except OSError as error:
            return f"no cgroup can be created in {root}: {error}"
    return ""


def _hierarchies() -> list[Path]:
    candidates = [_CGROUPS, *(path for path in _CGROUPS.glob("*") if path.is_dir() and not path.is_symlink())]
    return [path for path in candidates if path.is_mount() and (path / "cgroup.procs").exists()]


def _cgroups() -> list[Path]:
    return [root / CGROUP for root in _hierarchies() if (root / CGROUP).is_dir()]


def _pods_processes() -> Iterator[int]:
    pids: set[int] = set()
    for root in _cgroups():
        for folder, _, _ in os.walk(root):  # Ignores cgroups that are removed meanwhile.
            with contextlib.suppress(OSError):
                pids.update(int(pid) for pid in Path(folder, "cgroup.procs").read_text().split())
    yield from pids


def _shims(place: Layout) -> Iterator[int]:
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = path.read_text(errors="replace").split("\0")
            if Path(words[0]).name.startswith("containerd-shim") and str(place.socket) in words:
                yield int(path.parent.name)


def _mounts(folder: Path) -> list[Path]:
    """Return the mounts in the order of their creation."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    points = (re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), line.split()[4]) for line in lines)
    return [path for path in map(Path, points) if path.is_relative_to(folder)]
