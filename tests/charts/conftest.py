"""Fixtures that run Helm on the charts, without a cluster."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from kube import binaries

ROOT = Path(__file__).resolve().parents[2]
CHARTS = ROOT / "charts"

Manifests = list[dict[str, Any]]
Render = Callable[..., Manifests]


@pytest.fixture(scope="session")
def helm() -> Callable[[Sequence[str]], subprocess.CompletedProcess[str]]:
    """Return a function that runs Helm with arguments. Skip the test if Helm is not built."""
    folder = binaries.find()
    if folder is None:
        pytest.skip(binaries.NOT_BUILT)

    def run(arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run([folder / binaries.HELM, *arguments], capture_output=True, text=True, check=False)

    return run


@pytest.fixture(scope="session")
def render(helm: Callable[[Sequence[str]], subprocess.CompletedProcess[str]]) -> Render:
    """Return a function that renders a chart with values files and settings, and returns its manifests."""

    def run(chart: str, *settings: str, files: Sequence[Path] = (), release: str = "") -> Manifests:
        # Without this version, Helm would ask a cluster for its own.
        command = ["template", release or chart, str(CHARTS / chart), "--namespace", "tidemill-system"]
        command += ["--kube-version", binaries.kubernetes_version(), "--include-crds"]
        command += [part for file in files for part in ("--values", str(file))]
        command += [part for setting in settings for part in ("--set", setting)]
        done = helm(command)
        if done.returncode != 0:
            raise ValueError(done.stderr)
        return [manifest for manifest in yaml.safe_load_all(done.stdout) if manifest]

    return run
