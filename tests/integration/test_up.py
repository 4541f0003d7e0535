"""`tidemill up` as a user runs it: ready file, restarts, clean ends, second runs, edits, other commands beside it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tidemill_operator.local.child import start_time

pytestmark = [pytest.mark.integration, pytest.mark.slow]

PIPELINE = """\
apiVersion: tidemill.dev/v1alpha1
kind: AnalyticsPipeline
metadata: {name: %(name)s}
spec:
  source:
    topic: {partitions: %(partitions)s}
    fields:
      - {name: carrier, type: string, required: true}
      - {name: ts, type: timestamp, required: true}
    eventTime: {field: ts}
  aggregations:
    - name: by_carrier
      groupBy: [carrier]
      window: {type: tumbling, size: 1h}
      metrics:
        - {name: events, function: count}
"""
READY_SECONDS = 90.0
ENVIRON = {name: value for name, value in os.environ.items() if not name.startswith("TIDEMILL_")}


def pipeline(name: str = "flights", *, partitions: int | str = 1) -> str:
    return PIPELINE % {"name": name, "partitions": partitions}


def wait_until(condition: Callable[[], bool], *, seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.05)


def tidemill(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tidemill_operator.cli", *arguments]
    return subprocess.run(command, cwd=folder, env=ENVIRON, capture_output=True, text=True, check=False, timeout=120)


class Up:
    """A running `tidemill up` in a folder."""

    def __init__(self, folder: Path, process: subprocess.Popen[bytes]) -> None:
        self.folder = folder
        self.process = process

    @property
    def output(self) -> str:
        return (self.folder / "up.log").read_text()

    @property
    def ready_file(self) -> dict[str, Any]:
        return dict(json.loads((self.folder / "ready.json").read_text()))

    @property
    def status(self) -> dict[str, Any]:
        return dict(json.loads((self.folder / ".tidemill" / "status.json").read_text()))

    def wait_ready(self) -> None:
        def ready() -> bool:
            assert self.process.poll() is None, self.output
            return (self.folder / "ready.json").exists() and bool(self.status["ready"])

        wait_until(ready, seconds=READY_SECONDS, what=f"ready; so far:\n{self.output}")

    def pids(self) -> dict[str, int]:
        processes = {**self.status["workloads"], **self.status["servers"]}
        return {name: process["pid"] for name, process in processes.items() if process["pid"]}

    def end(self, number: int) -> int:
        self.process.send_signal(number)
        return self.process.wait(60)


@contextmanager
def up(folder: Path, *files: str) -> Iterator[Up]:
    arguments = [argument for file in files or ("a.yaml",) for argument in ("-f", file)]
    command = [sys.executable, "-m", "tidemill_operator.cli", "up", *arguments, "--ready-file", "ready.json"]
    command += ["--port-ingest", "21200", "--port-api", "21300"]
    with open(folder / "up.log", "wb") as log:
        process = subprocess.Popen(command, cwd=folder, env=ENVIRON, stdout=log, stderr=subprocess.STDOUT)
    started = Up(folder, process)
    try:
        yield started
    finally:
        if process.poll() is None:
            started.end(signal.SIGTERM)


def gone(pids: dict[str, int]) -> list[str]:
    """Those that are still there."""
    return [name for name, pid in pids.items() if start_time(pid)]


@pytest.fixture
def folder(server_folder: Path) -> Path:
    (server_folder / "a.yaml").write_text(pipeline())
    return server_folder


def test_up_runs_survives_kills_and_goes_on_where_it_stopped(folder: Path) -> None:
    """Ready file and health; a killed child returns; SIGTERM leaves nothing; a second run has the same addresses."""
    with up(folder) as first:
        first.wait_ready()
        ready = first.ready_file
        assert set(ready) == {"pipelines", "kafka", "postgres", "redis"}
        for url in ready["pipelines"]["flights"].values():
            assert httpx.get(f"{url}/health", timeout=10, trust_env=False).status_code == 200
        before = first.pids()
        assert set(before) >= {"kafka", "postgres", "redis", "default.flights-processor-0", "default.tidemill-api-0"}

        killed = before["default.flights-processor-0"]
        os.kill(killed, signal.SIGKILL)
        wait_until(
            lambda: first.pids().get("default.flights-processor-0") not in (None, killed), seconds=5, what="restart"
        )
        first.wait_ready()

        told = tidemill("status", "--output", "json", folder=folder)
        assert told.returncode == 0, told.stderr
        assert json.loads(told.stdout)["workloads"]["default.flights-processor-0"]["restarts"] == 1

        refused = tidemill("up", "-f", "a.yaml", folder=folder)
        assert refused.returncode == 1
        assert "another `tidemill up` uses" in refused.stderr

        running = first.pids()
        assert first.end(signal.SIGTERM) == 0, first.output
        assert gone(running) == []
        assert not (folder / "ready.json").exists()

    with up(folder) as second:
        second.wait_ready()
        assert second.ready_file == ready
        assert second.status["pipelines"]["default/flights"]["generation"] == 1
        stopped = tidemill("down", "--delete-data", folder=folder)
        assert stopped.returncode == 0, stopped.stderr
        assert second.process.wait(10) == 0
    assert not (folder / ".tidemill").exists()


def test_nothing_outlives_a_killed_up(folder: Path) -> None:
    """SIGKILL of `up`: every child is gone within seconds, and the next run starts from the same data."""
    with up(folder) as first:
        first.wait_ready()
        ready, running = first.ready_file, first.pids()
        assert len(running) >= 5
        first.end(signal.SIGKILL)
        wait_until(lambda: gone(running) == [], seconds=10, what=f"children end; left: {gone(running)}")
    with up(folder) as second:
        (folder / "ready.json").unlink(missing_ok=True)
        second.wait_ready()
        assert second.ready_file == ready


def test_edits_are_followed_while_it_runs(folder: Path) -> None:
    """A changed spec is a new generation, a faulty one changes nothing, another document runs, a removed one leaves."""
    with up(folder) as running:
        running.wait_ready()
        (folder / "a.yaml").write_text(pipeline(partitions=2))
        wait_until(
            lambda: running.status["pipelines"]["default/flights"]["generation"] == 2 and running.status["ready"],
            seconds=60,
            what="generation 2 is ready",
        )
        (folder / "a.yaml").write_text(pipeline(partitions="many"))
        wait_until(lambda: "spec.source.topic.partitions" in running.output, seconds=10, what="the fault is told")
        assert running.status["pipelines"]["default/flights"]["generation"] == 2
        assert running.status["ready"]

        (folder / "a.yaml").write_text(pipeline(partitions=2) + "---\n" + pipeline("traffic"))
        wait_until(lambda: "traffic" in running.ready_file["pipelines"], seconds=60, what="the second pipeline")
        urls = running.ready_file["pipelines"]
        assert urls["traffic"] == urls["flights"]

        (folder / "a.yaml").write_text(pipeline("traffic"))
        wait_until(lambda: list(running.ready_file["pipelines"]) == ["traffic"], seconds=60, what="flights is released")
        assert "default.flights-processor-0" not in running.pids()


def test_a_replay_is_asked_for_and_followed(folder: Path) -> None:
    """`tidemill replay` tells how far it is until the next version answers; a request that cannot be is refused."""
    with up(folder) as running:
        running.wait_ready()
        ingest = running.ready_file["pipelines"]["flights"]["ingest"]
        events = [{"carrier": "LH", "ts": "2026-03-01T10:00:00Z"}] * 500
        answer = httpx.post(f"{ingest}/v1/pipelines/flights/events", json=events, timeout=30, trust_env=False)
        assert answer.json()["accepted"] == 500
        refused = tidemill("replay", "flights", "--from", "yesterday", folder=folder)
        assert (refused.returncode, "from yesterday is no start" in refused.stderr) == (1, True), refused
        done = tidemill("replay", "flights", folder=folder)
        assert done.returncode == 0, done.stderr + running.output
        assert done.stdout.splitlines()[-1].endswith(": done; in force: by_carrier version 2")
        (pipeline,) = running.status["pipelines"].values()
        assert {item["version"] for item in pipeline["aggregations"]} == {2}


def test_a_killed_server_is_started_again(folder: Path) -> None:
    """`up` looks after its servers too: same port, and the workloads find them again."""
    with up(folder) as running:
        running.wait_ready()
        before = running.pids()
        for name in ("postgres", "redis", "kafka"):
            os.kill(before[name], signal.SIGKILL)
        wait_until(
            lambda: all(
                running.pids().get(name) not in (None, before[name]) for name in ("postgres", "redis", "kafka")
            ),
            seconds=30,
            what="servers are back",
        )
        wait_until(lambda: bool(running.status["ready"]), seconds=120, what=f"ready again:\n{running.output}")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        pytest.param("a: [", "not valid YAML", id="not YAML"),
        pytest.param(pipeline().replace("1h", "soon"), "spec.aggregations[0].window.size", id="a fault in a field"),
    ],
)
def test_an_invalid_file_starts_nothing(folder: Path, content: str, expected: str) -> None:
    """Exit code 2, the fault on stderr, no data folder."""
    (folder / "a.yaml").write_text(content)
    refused = tidemill("up", "-f", "a.yaml", folder=folder)
    assert (refused.returncode, expected in refused.stderr) == (2, True), refused.stderr
    assert not (folder / ".tidemill").exists()


def test_commands_without_a_run_say_so(folder: Path) -> None:
    """Status fails with what to do; down has nothing to do, and deletes nothing that is not ours."""
    (folder / "precious").mkdir()
    told = tidemill("status", folder=folder)
    assert told.returncode == 1
    assert "tidemill up -f FILE" in told.stderr
    stopped = tidemill("down", "--delete-data", "--data-dir", "precious", folder=folder)
    assert stopped.returncode == 0
    assert (folder / "precious").exists()
