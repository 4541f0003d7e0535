"""A CPU quota for processes: each gets a control group of its own."""

from __future__ import annotations

import os
from pathlib import Path


class Quota:
    """A quota of CPU time for each process, set as the kubelet sets it for a container."""

    PERIOD = 100_000

    def __init__(self, cores: float) -> None:
        mounted = Path("/sys/fs/cgroup")
        self._old = (mounted / "cpu" / "cpu.cfs_quota_us").exists()
        self._root = mounted / "cpu" if self._old else mounted
        self._quota = round(cores * self.PERIOD)
        self._folders: dict[int, Path] = {}

    @property
    def works(self) -> bool:
        """Return whether this user can create control groups with a quota."""
        if self._old:
            return os.access(self._root, os.W_OK)
        shared = self._root / "cgroup.subtree_control"
        return os.access(shared, os.W_OK) and "cpu" in shared.read_text().split()

    def give(self, pid: int) -> None:
        """Limit a process; a second call for it changes nothing."""
        if pid in self._folders:
            return
        folder = self._root / f"tidemill-test-{os.getpid()}-{pid}"
        folder.mkdir()
        self._folders[pid] = folder
        if self._old:
            (folder / "cpu.cfs_period_us").write_text(str(self.PERIOD))
            (folder / "cpu.cfs_quota_us").write_text(str(self._quota))
        else:
            (folder / "cpu.max").write_text(f"{self._quota} {self.PERIOD}")
        (folder / "cgroup.procs").write_text(str(pid))

    def remove(self) -> None:
        for folder in self._folders.values():
            folder.rmdir()
