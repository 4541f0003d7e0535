"""The container of a Connect worker as a process on this machine, with the files of its Secrets.

Paths and the port are replaced, because this machine has neither the files of the image nor the address of the pod.
"""

from __future__ import annotations

import base64
import contextlib
import os
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx

from tidemill_operator.laptop.servers.connect_jars import find_connect_jars, find_plugins
from tidemill_operator.laptop.servers.kafka_jars import find_java
from tidemill_operator.plan.connect.connectors import FILES
from tidemill_operator.plan.connect.workers import CONFIG_DIR, PLUGINS_DIR, PORT, SECRETS_DIR
from waiting import eventually


@dataclass(frozen=True)
class Worker:
    """The worker of one namespace. `folder` has its files, and the secrets of connectors in `secrets`."""

    folder: Path
    port: int

    @property
    def url(self) -> str:
        """The address of the REST interface."""
        return f"http://127.0.0.1:{self.port}"

    def mount(self, files: Mapping[str, Any], *, below: str) -> None:
        """Write the data of a Secret to files in a folder, as a node does."""
        folder = self.folder / below
        folder.mkdir(exist_ok=True)
        for name, text in (files.get("data") or {}).items():
            (folder / name).write_text(self._here(base64.b64decode(text).decode()))

    @contextlib.contextmanager
    def running(self, deployment: Mapping[str, Any]) -> Iterator[None]:
        """Run the command of a Deployment during the block, which begins when all probes succeed."""
        (container,) = deployment["spec"]["template"]["spec"]["containers"]
        replaced = {"java": find_java(os.environ), "/opt/kafka/libs/*": f"{find_connect_jars(os.environ)}/*"}
        command = [self._here(replaced.get(part, part)) for part in container["command"]]
        environment = {"PATH": os.environ["PATH"], "POD_IP": "127.0.0.1"}
        self.mount({}, below="secrets")  # In a pod, the folder exists even if the Secret does not.
        log = self.folder / "worker.log"
        with log.open("wb") as out:
            process = subprocess.Popen(command, env=environment, stdout=out, stderr=out)
        try:
            for kind in ("startupProbe", "livenessProbe", "readinessProbe"):
                path = container[kind]["httpGet"]["path"]
                answers = partial(self._answers, path, process)
                eventually(answers, seconds=180, what=partial(self._log_of, path))
            yield
        finally:
            process.terminate()
            process.wait(60)

    def _answers(self, path: str, process: subprocess.Popen[bytes]) -> bool:
        if process.poll() is not None:
            raise RuntimeError(f"the worker has ended: {self._log_of(path)}")
        with contextlib.suppress(httpx.HTTPError):
            return httpx.get(f"{self.url}{path}", timeout=5, trust_env=False).is_success
        return False

    def _log_of(self, path: str) -> str:
        return f"{path}: {(self.folder / 'worker.log').read_text()[-2000:]}"

    def _here(self, text: str) -> str:
        plugins = ",".join(map(str, find_plugins([FILES], os.environ)))
        for in_pod, here in (
            (CONFIG_DIR, str(self.folder / "config")),
            (SECRETS_DIR, str(self.folder / "secrets")),
            (PLUGINS_DIR, plugins),
            (f"0.0.0.0:{PORT}", f"127.0.0.1:{self.port}"),
        ):
            text = text.replace(in_pod, here)
        return text
