"""The programs of Prometheus, and a running Prometheus with a given configuration."""

from __future__ import annotations

import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml


def program(name: str) -> str:
    """Return the path of `prometheus` or `promtool`, or fail the test if it is not installed."""
    path = shutil.which(name)
    if path is None:
        pytest.fail(f"{name} is not installed; run `make setup`, or install the package `prometheus`")
    return path


class Prometheus:
    """A client of a running Prometheus."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._client = httpx.Client(base_url=url, timeout=20, trust_env=False)

    def ask(self, path: str, **parameters: Any) -> Any:
        """Return `data` of an answer to a path of its API, such as `query`, or None while it is not ready."""
        try:
            answer = self._client.get(f"/api/v1/{path}", params=parameters)
        except httpx.TransportError:
            return None
        if answer.status_code == 503:
            return None
        assert answer.status_code == 200, f"{parameters}: {answer.text}"
        return answer.json()["data"]

    def close(self) -> None:
        """Close the client."""
        self._client.close()


@contextmanager
def prometheus(folder: Path, config: dict[str, Any]) -> Iterator[Prometheus]:
    """Start Prometheus with a configuration, and end it after the block. It may not be ready at first."""
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    command = [program("prometheus"), "--config.file=prometheus.yml", "--storage.tsdb.path=tsdb"]
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(
            [*command, f"--web.listen-address={address}"], cwd=folder, stdout=log, stderr=subprocess.STDOUT
        )
    running = Prometheus(f"http://{address}")
    try:
        yield running
    finally:
        running.close()
        process.terminate()
        process.wait(30)
