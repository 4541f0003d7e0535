"""Test of `tidemill plan` and `tidemill down` beside a running `tidemill up` with servers of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tidemill_operator.processes.child import start_time
from waiting import eventually

pytestmark = [pytest.mark.integration, pytest.mark.slow]

PIPELINE = """\
apiVersion: tidemill.dev/v1alpha1
kind: AnalyticsPipeline
metadata: {name: orders, namespace: shop}
spec:
  source:
    topic: {partitions: 1}
    fields:
      - {name: country, type: string, required: true}
      - {name: ts, type: timestamp, required: true}
    eventTime: {field: ts}
  aggregations:
    - name: by_country
      groupBy: [country]
      window: {type: tumbling, size: 1h}
      metrics:
        - {name: events, function: count}
"""
ENVIRON = {name: value for name, value in os.environ.items() if not name.startswith("TIDEMILL_")}
COMMAND = [sys.executable, "-m", "tidemill_operator.cli"]


def tidemill(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments], cwd=folder, env=ENVIRON, capture_output=True, text=True, check=False, timeout=120
    )


@pytest.fixture
def up(server_folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Start `up` in a folder with `orders.yaml`, and wait until it is ready."""
    (server_folder / "orders.yaml").write_text(PIPELINE)
    with (server_folder / "up.log").open("wb") as log:
        process = subprocess.Popen(
            [
                *COMMAND,
                "up",
                "-f",
                "orders.yaml",
                "--ready-file",
                "ready.json",
                "--port-ingest",
                "0",
                "--port-api",
                "0",
            ],
            cwd=server_folder,
            env=ENVIRON,
            stdout=log,
            stderr=log,
        )
    try:
        ready, log_file = server_folder / "ready.json", server_folder / "up.log"
        eventually(lambda: ready.exists() or process.poll() is not None, what=log_file.read_text, seconds=120.0)
        assert process.poll() is None, log_file.read_text()
        yield process
    finally:
        process.terminate()
        process.wait(60)


def test_plan_finds_the_servers_of_up_and_down_ends_them(up: subprocess.Popen[bytes], server_folder: Path) -> None:
    """The plan shows no changes, then those of an edit and of a new pipeline. Down also deletes the data."""
    unchanged = tidemill("plan", "orders.yaml", folder=server_folder)
    assert (unchanged.returncode, unchanged.stdout.splitlines()[-1]) == (0, "no changes"), unchanged.stderr
    edited = PIPELINE.replace("partitions: 1", "partitions: 2").replace("  source:", "  suspend: true\n  source:", 1)
    (server_folder / "edited.yaml").write_text(edited)
    planned = tidemill("plan", "edited.yaml", folder=server_folder)
    assert planned.stdout.splitlines()[2:] == [
        "shop/orders, generation 2",
        "~ topic shop.orders.events",
        "    ~ partitions: 1 → 2",
        "~ config orders.json",
        "    ~ generation: 1 → 2",
        "    ~ spec.suspend: false → true",
        "    ~ spec.source.topic.partitions: 1 → 2",
        "~ workload orders-processor",
        "    ~ replicas: 1 → 0",
        "0 to create, 3 to change, 0 to remove",
    ]
    (server_folder / "other.yaml").write_text(PIPELINE.replace("name: orders", "name: returns"))
    newcomer = tidemill("plan", "other.yaml", "--output", "json", folder=server_folder)
    assert newcomer.returncode == 0, newcomer.stderr
    plan = json.loads(newcomer.stdout)
    assert {change["action"] for change in plan["pipelines"][0]["changes"]} == {"create"}
    password = (server_folder / ".tidemill" / "postgres-admin.password").read_text().strip()
    assert password not in newcomer.stdout + planned.stdout + unchanged.stdout

    state = json.loads((server_folder / ".tidemill" / "status.json").read_text())
    children = [process["pid"] for process in [*state["servers"].values(), *state["workloads"].values()]]
    assert len([pid for pid in children if start_time(pid)]) == 6
    down = tidemill("down", "--delete-data", folder=server_folder)
    assert (down.returncode, down.stderr) == (0, "")
    assert up.wait(10) == 0
    assert [pid for pid in children if start_time(pid)] == []
    assert not (server_folder / ".tidemill").exists()
    second = tidemill("down", folder=server_folder)
    assert (second.returncode, second.stdout) == (0, "nothing runs with --data-dir .tidemill\n")
