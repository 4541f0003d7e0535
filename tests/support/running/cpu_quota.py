"""A CPU quota for processes, by a control group for each."""

from __future__ import annotations

import os
from pathlib import Path


class Quota:
    """So much of a core for each process that is given to it, as the kubelet does it for containers."""

    PERIOD = 100_000

    def __init__(self, cores: float) -> None:
        mounted = Path("/sys/fs/cgroup")
        self._old = (mounted / "cpu" / "cpu.cfs_quota_us").exists()
        self._root = mounted / "cpu" if self._old else mounted
        self._quota = round(cores * self.PERIOD)
        self._made: dict[int, Path] = {}

    @property
    def works(self) -> bool:
        if self._old:
            return os.access(self._root, os.W_OK)
        shared = self._root / "cgroup.subtree_control"
        return os.access(shared, os.W_OK) and "cpu" in shared.read_text().split()

    def give(self, pid: int) -> None:
        if pid in self._made:
            return
        folder = self._root / f"tidemill-test-{os.getpid()}-{pid}"
        folder.mkdir()
        self._made[pid] = folder
        if self._old:
            (folder / "cpu.cfs_period_us").write_text(str(self.PERIOD))
            (folder / "cpu.cfs_quota_us").write_text(str(self._quota))
        else:
            (folder / "cpu.max").write_text(f"{self._quota} {self.PERIOD}")
        (folder / "cgroup.procs").write_text(str(pid))

    def remove(self) -> None:
        for folder in self._made.values():
            folder.rmdir()
