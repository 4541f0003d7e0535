"""Charts rendered by Helm itself, without a cluster."""

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
    """Runs Helm."""
    folder = binaries.find()
    if folder is None:
        pytest.skip(binaries.NOT_BUILT)

    def run(arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run([folder / binaries.HELM, *arguments], capture_output=True, text=True, check=False)

    return run


@pytest.fixture(scope="session")
def render(helm: Callable[[Sequence[str]], subprocess.CompletedProcess[str]]) -> Render:
    """Renders a chart with files and settings; the manifests."""

    def run(chart: str, *settings: str, files: Sequence[Path] = (), release: str = "") -> Manifests:
        # What Kubernetes there is, Helm would otherwise ask the cluster.
        command = ["template", release or chart, str(CHARTS / chart), "--namespace", "tidemill-system"]
        command += ["--kube-version", binaries.kubernetes_version(), "--include-crds"]
        command += [part for file in files for part in ("--values", str(file))]
        command += [part for setting in settings for part in ("--set", setting)]
        done = helm(command)
        if done.returncode != 0:
            raise ValueError(done.stderr)
        return [manifest for manifest in yaml.safe_load_all(done.stdout) if manifest]

    return run
