"""Installs missing system packages that building needs (Debian, as root)."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from tidemill_operator.processes.files import locked

# Not all commands of Debian wait for its own locks, and images and a cluster may be built at the same time.
_LOCK = Path("/run/tidemill-packages.lock")
_LOCK_SECONDS = 900.0


def install_missing(programs: Mapping[str, str]) -> None:
    """Install the packages of those programs that are not on the PATH.

    Args:
        programs: The Debian package of each program.

    Raises:
        RuntimeError: A program is missing, and its package cannot be installed on this machine.
    """
    missing = sorted({package for program, package in programs.items() if shutil.which(program) is None})
    if not missing:
        return
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise RuntimeError(f"install {', '.join(missing)} with this system's package manager, then run this again")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    with locked(_LOCK, wait_seconds=_LOCK_SECONDS):
        for command in (["update"], ["install", "-y", "--no-install-recommends", *missing]):
            done = subprocess.run(
                ["apt-get", "-qq", *command], env=environment, capture_output=True, text=True, check=False
            )
            if done.returncode != 0:
                raise RuntimeError(f"apt-get {' '.join(command)} failed: {done.stderr.strip()[-2000:]}")
