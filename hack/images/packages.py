"""Installs missing Debian packages, as root."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from tidemill_operator.processes.files import locked

# Images and a cluster may be built at the same time, and not all commands of apt-get wait for apt's locks.
_LOCK = Path("/run/tidemill-packages.lock")
_LOCK_SECONDS = 900.0


def install_missing(programs: Mapping[str, str]) -> None:
    """Install the package of each program that is not on the PATH.

    Args:
        programs: The Debian package of each program.

    Raises:
        RuntimeError: A program is missing, and its package cannot be installed on this machine.
    """
    missing = sorted({package for program, package in programs.items() if shutil.which(program) is None})
    if not missing:
        return
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise RuntimeError(f"not installed: {', '.join(missing)}; install them as root, then run this again")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    with locked(_LOCK, wait_seconds=_LOCK_SECONDS):
        for command in (["update"], ["install", "-y", "--no-install-recommends", *missing]):
            done = subprocess.run(
                ["apt-get", "-qq", *command], env=environment, capture_output=True, text=True, check=False
            )
            if done.returncode != 0:
                raise RuntimeError(f"apt-get {' '.join(command)} failed: {done.stderr.strip()[-2000:]}")
