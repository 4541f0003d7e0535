"""Runs `tidemill up` for the demo, and uses it like a user: through its command line and its files."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import yaml
from confluent_kafka.admin import AdminClient

from demo.data import ROOT
from tidemill_operator.actuators.kafka.offsets import LATEST, OffsetReader

T = TypeVar("T")
# The end offsets that Kafka reported, by partition, and the reasons why other end offsets are unknown.
Ends = tuple[dict[int, int], list[str]]
_START_SECONDS = 150.0
_STOP_SECONDS = 60.0
_ENDS_SECONDS, _ENDS_PAUSE_SECONDS = 30.0, 0.5


class DemoError(RuntimeError):
    """The demo cannot continue. The message contains the reason, and where to look."""


def until(check: Callable[[], T | None], *, seconds: float, what: str, pause_seconds: float = 0.2) -> T:
    """Call `check` until its value is true, and return the value.

    Raises:
        DemoError: The value is not true within the time limit.
    """
    deadline = time.monotonic() + seconds
    while True:
        value = check()
        if value:
            return value
        if time.monotonic() > deadline:
            raise DemoError(f"{what}: not within {seconds:.0f} s")
        time.sleep(pause_seconds)


def all_ends(ask: Callable[[], Ends], topic: str) -> dict[int, int]:
    """Return the end offset of each partition of a topic. Retry while leaders of partitions change.

    Args:
        ask: The function that asks Kafka once.
        topic: The topic's name, for the error message.

    Raises:
        DemoError: End offsets are still unknown after the time limit. The message contains the reasons.
    """
    deadline = time.monotonic() + _ENDS_SECONDS
    while True:
        ends, faults = ask()
        if not faults:
            return ends
        if time.monotonic() > deadline:
            raise DemoError(f"Kafka does not report the ends of {topic}: {'; '.join(faults)}")
        time.sleep(_ENDS_PAUSE_SECONDS)


def topic_ends(brokers: str, topic: str) -> dict[int, int]:
    """Return the end offset of each partition of a topic, from brokers that this process can reach."""
    partitions = AdminClient({"bootstrap.servers": brokers}).list_topics(topic, timeout=10).topics[topic].partitions
    log = OffsetReader(brokers)

    def ask() -> Ends:
        offsets = log.offsets([(topic, partition) for partition in partitions], LATEST)
        return offsets.of(topic), list(offsets.faults.values())

    return all_ends(ask, topic)


class Platform(Protocol):
    """The platform on which a demo's pipeline runs.

    Attributes:
        name: The name of the pipeline.
        namespace: The namespace of the pipeline.
        document: The pipeline's resource.
    """

    name: str
    namespace: str
    document: dict[str, Any]

    @property
    def logs(self) -> str:
        """The place where a user finds the cause of a failure."""

    def url(self, component: str) -> str:
        """Return the base URL of `ingest` or `api`."""

    def check_alive(self) -> None:
        """Raise DemoError if the platform has ended."""

    def topic_ends(self) -> dict[int, int]:
        """Return the end offset of each partition of the events topic."""


class Runtime:
    """One `tidemill up` with a separate data folder, and a copy of a pipeline's YAML that may be edited.

    Args:
        example: The file with the pipeline's YAML.
        folder: The folder of the copy, the data and the logs.
        environment: Additional environment variables.
        any_ports: Whether to listen on random free ports. Without it, tests that run at the same time would choose the
            same ports, because `up` chooses the first free ports.
        options: Additional options of `tidemill up`.
    """

    def __init__(
        self,
        example: Path,
        folder: Path,
        *,
        environment: Mapping[str, str] | None = None,
        any_ports: bool = False,
        options: Sequence[str] = (),
    ) -> None:
        self.folder = folder
        self.file = folder / "pipeline.yaml"
        self.document: dict[str, Any] = yaml.safe_load(example.read_text())
        self.name = str(self.document["metadata"]["name"])
        self.namespace = str(self.document["metadata"].get("namespace", "default"))
        self._environment = {**os.environ, **(environment or {})}
        self._options = [*(["--port-ingest", "0", "--port-api", "0"] if any_ports else []), *options]
        self._process: subprocess.Popen[bytes] | None = None
        self._ready: dict[str, Any] = {}

    @property
    def data_dir(self) -> Path:
        """The data folder of `up`."""
        return self.folder / "data"

    @property
    def log(self) -> Path:
        """The file with the output of `up`."""
        return self.folder / "up.log"

    def start(self) -> None:
        """Start `up`, and wait until it is ready.

        Raises:
            DemoError: `up` ends or is not ready in time.
        """
        self._write()
        ready_file = self.folder / "ready.json"
        command = [str(Path(sys.executable).with_name("tidemill")), "up", "-f", str(self.file)]
        command += ["--data-dir", str(self.data_dir), "--ready-file", str(ready_file), *self._options]
        with self.log.open("wb") as output:
            self._process = subprocess.Popen(
                command, cwd=ROOT, env=self._environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )

        def ready() -> bool:
            self.check_alive()
            return ready_file.exists()

        until(ready, seconds=_START_SECONDS, what=f"`tidemill up` is ready (it prints to {self.log})")
        self._ready = json.loads(ready_file.read_text())

    def check_alive(self) -> None:
        """Raise DemoError if `up` has ended.

        Raises:
            DemoError: `up` has ended.
        """
        if self._process is not None and self._process.poll() is not None:
            tail = self.log.read_text(errors="replace")[-3000:]
            raise DemoError(f"`tidemill up` ended with exit status {self._process.returncode}:\n{tail}")

    def url(self, component: str) -> str:
        """Return the base URL of `ingest` or `api`."""
        return str(self._ready["pipelines"][self.name][component])

    @property
    def kafka(self) -> str:
        """The bootstrap servers of Kafka."""
        return str(self._ready["kafka"])

    @property
    def logs(self) -> str:
        """The folder with the logs of all processes."""
        return str(self.data_dir / "logs")

    def topic_ends(self) -> dict[int, int]:
        """Return the end offset of each partition of the events topic."""
        return topic_ends(self.kafka, f"{self.namespace}.{self.name}.events")

    def status(self) -> dict[str, Any]:
        """Return the content of the status file, which `up` writes several times a second."""
        return dict(json.loads((self.data_dir / "status.json").read_text()))

    def processors(self) -> dict[str, int]:
        """Return the process ids of the running processors, by replica."""
        workloads = self.status()["workloads"]
        return {name: state["pid"] for name, state in workloads.items() if "processor" in name and state["pid"]}

    def edit(self, change: Callable[[dict[str, Any]], None]) -> None:
        """Change the spec in the file that `up` watches."""
        change(self.document["spec"])
        self._write()

    def _write(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = self.file.with_suffix(".partial")
        partial.write_text(yaml.safe_dump(self.document, sort_keys=False))
        partial.replace(self.file)

    def wait(self) -> None:
        """Block until `up` ends."""
        if self._process is not None:
            self._process.wait()

    def stop(self) -> int:
        """Stop `up` with SIGTERM, and kill it if it does not end in time.

        Returns:
            The exit status of `up`.
        """
        if self._process is None:
            return 0
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        return self._process.returncode
