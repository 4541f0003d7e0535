"""Tests of `tidemill up` as a user runs it, with real servers and processes."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import httpx
import pytest

from running.up import gone, tidemill, up
from waiting import eventually

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


def pipeline(name: str = "flights", *, partitions: int | str = 1) -> str:
    return PIPELINE % {"name": name, "partitions": partitions}


@pytest.fixture
def folder(server_folder: Path) -> Path:
    (server_folder / "a.yaml").write_text(pipeline())
    return server_folder


def test_up_restarts_a_killed_process_and_a_second_run_continues_the_first(folder: Path) -> None:
    """SIGTERM ends every process. The second run has the same addresses."""
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
        eventually(
            lambda: first.pids().get("default.flights-processor-0") not in (None, killed), seconds=20, what="restart"
        )
        first.wait_ready()

        status = tidemill("status", "--output", "json", folder=folder)
        assert status.returncode == 0, status.stderr
        assert json.loads(status.stdout)["workloads"]["default.flights-processor-0"]["restarts"] == 1

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


def test_no_process_outlives_a_killed_up(folder: Path) -> None:
    """Every child ends within seconds after SIGKILL of `up`. The next run starts with the same data."""
    with up(folder) as first:
        first.wait_ready()
        ready, running = first.ready_file, first.pids()
        assert len(running) >= 5
        first.end(signal.SIGKILL)
        eventually(lambda: gone(running) == [], seconds=10, what=f"children end; left: {gone(running)}")
    with up(folder) as second:
        (folder / "ready.json").unlink(missing_ok=True)
        second.wait_ready()
        assert second.ready_file == ready


def test_up_applies_edits_of_its_file_while_it_runs(folder: Path) -> None:
    """An invalid edit changes nothing. A removed pipeline is released."""
    with up(folder) as running:
        running.wait_ready()
        (folder / "a.yaml").write_text(pipeline(partitions=2))
        eventually(
            lambda: running.status["pipelines"]["default/flights"]["generation"] == 2 and running.status["ready"],
            seconds=60,
            what="generation 2 is ready",
        )
        (folder / "a.yaml").write_text(pipeline(partitions="many"))
        eventually(
            lambda: "spec.source.topic.partitions" in running.output,
            seconds=10,
            what="the output names the invalid field",
        )
        assert running.status["pipelines"]["default/flights"]["generation"] == 2
        assert running.status["ready"]

        (folder / "a.yaml").write_text(pipeline(partitions=2) + "---\n" + pipeline("traffic"))
        eventually(
            lambda: "traffic" in running.ready_file["pipelines"], seconds=60, what="the second pipeline is ready"
        )
        urls = running.ready_file["pipelines"]
        assert urls["traffic"] == urls["flights"]

        (folder / "a.yaml").write_text(pipeline("traffic"))
        eventually(lambda: list(running.ready_file["pipelines"]) == ["traffic"], seconds=60, what="flights is released")
        assert "default.flights-processor-0" not in running.pids()


def test_tidemill_replay_ends_when_the_next_version_is_in_force(folder: Path) -> None:
    """The command refuses an invalid start time."""
    with up(folder) as running:
        running.wait_ready()
        ingest = running.ready_file["pipelines"]["flights"]["ingest"]
        events = [{"carrier": "LH", "ts": "2026-03-01T10:00:00Z"}] * 500
        answer = httpx.post(f"{ingest}/v1/pipelines/flights/events", json=events, timeout=30, trust_env=False)
        assert answer.json()["accepted"] == 500
        refused = tidemill("replay", "flights", "--from", "yesterday", folder=folder)
        assert (refused.returncode, "from yesterday is not a start time" in refused.stderr) == (1, True), refused
        done = tidemill("replay", "flights", folder=folder)
        assert done.returncode == 0, done.stderr + running.output
        assert done.stdout.splitlines()[-1].endswith(": done; in force: by_carrier version 2")
        (state,) = running.status["pipelines"].values()
        assert {item["version"] for item in state["aggregations"]} == {2}


def test_up_starts_killed_servers_again_on_their_ports(folder: Path) -> None:
    """The workloads connect to them again and become ready."""
    with up(folder) as running:
        running.wait_ready()
        before = running.pids()
        for name in ("postgres", "redis", "kafka"):
            os.kill(before[name], signal.SIGKILL)
        eventually(
            lambda: all(
                running.pids().get(name) not in (None, before[name]) for name in ("postgres", "redis", "kafka")
            ),
            seconds=30,
            what="servers run again",
        )
        eventually(lambda: bool(running.status["ready"]), seconds=120, what=f"ready again:\n{running.output}")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        pytest.param("a: [", "not valid YAML", id="not YAML"),
        pytest.param(pipeline().replace("1h", "soon"), "spec.aggregations[0].window.size", id="a fault in a field"),
    ],
)
def test_an_invalid_file_starts_nothing(folder: Path, content: str, expected: str) -> None:
    """The exit code is 2, stderr names the fault, and no data folder is created."""
    (folder / "a.yaml").write_text(content)
    refused = tidemill("up", "-f", "a.yaml", folder=folder)
    assert (refused.returncode, expected in refused.stderr) == (2, True), refused.stderr
    assert not (folder / ".tidemill").exists()


def test_status_fails_and_down_does_nothing_without_a_running_up(folder: Path) -> None:
    """Status names the command that starts `up`. Down deletes no folder that Tidemill did not create."""
    (folder / "precious").mkdir()
    status = tidemill("status", folder=folder)
    assert status.returncode == 1
    assert "tidemill up -f FILE" in status.stderr
    stopped = tidemill("down", "--delete-data", "--data-dir", "precious", folder=folder)
    assert stopped.returncode == 0
    assert (folder / "precious").exists()
