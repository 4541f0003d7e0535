"""A real API server for the tests of this folder. Without the cluster's programs, the tests are skipped."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from kube import binaries
from kube.controlplane import ControlPlane


def require_programs() -> None:
    """Skip the test if the cluster's programs are not built."""
    if binaries.find() is None:
        pytest.skip(binaries.NOT_BUILT)


@pytest.fixture(scope="session")
def control_plane() -> Iterator[ControlPlane]:
    """Start etcd, an API server and a controller manager for the test session, without nodes."""
    require_programs()
    folder = Path(tempfile.mkdtemp(prefix="tidemill-control-plane-"))
    try:
        with ControlPlane(folder, controllers=True, on_progress=lambda text: print(text, file=sys.stderr)) as started:
            yield started
    finally:
        shutil.rmtree(folder, ignore_errors=True)
