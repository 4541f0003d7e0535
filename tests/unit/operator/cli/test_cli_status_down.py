"""Tests of `tidemill status` and `tidemill down`. Real processes play `up` and its children."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tidemill_operator.cli.main import main
from tidemill_operator.processes.child import start_time
from tidemill_operator.processes.files import locked


def write_report(folder: Path, pid: int, *, started: str | None = None, ready: bool = True) -> None:
    """Write the status file of an `up` with this pid."""
    state: dict[str, Any] = {
        "pid": pid,
        "started": started or start_time(pid),
        "ready": ready,
        "addresses": {"kafka": "127.0.0.1:9092"},
        "pipelines": {
            "shop/orders": {
                "generation": 3,
                "ready": ready,
                "endpoints": {"api": "http://127.0.0.1:8081"},
                "conditions": [{"type": "Ready", "status": str(ready), "reason": "Applied", "message": ""}],
            }
        },
        "workloads": {"shop.orders-processor-0": {"pid": None, "port": 9, "ready": False, "restarts": 2}},
        "servers": {"kafka": {"pid": 4, "port": 9092, "ready": True}},
    }
    (folder / "status.json").write_text(json.dumps(state))


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    """Start a process that ends on SIGTERM."""
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as started:
        yield started
        started.kill()


def test_status_shows_addresses_conditions_and_processes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A process that does not answer is shown as unreachable."""
    write_report(tmp_path, os.getpid())
    assert main(["status", "--data-dir", str(tmp_path)]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert f"up: pid {os.getpid()}" in lines
    assert "kafka: 127.0.0.1:9092" in lines
    assert "pipeline shop/orders, generation 3" in lines
    assert "api: http://127.0.0.1:8081" in lines
    assert "Ready=True Applied" in lines
    assert "kafka 4 9092 yes 0" in lines
    assert "shop.orders-processor-0 - 9 no 2 unreachable (ConnectError)" in lines


@pytest.mark.parametrize(("started", "ready"), [(None, False), ("long ago", True)], ids=["not ready", "not running"])
def test_status_of_a_pipeline_that_is_not_ready_is_exit_code_1(
    tmp_path: Path, started: str | None, ready: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    write_report(tmp_path, os.getpid(), started=started, ready=ready)
    assert main(["status", "--data-dir", str(tmp_path), "--output", "json"]) == 1
    status = json.loads(capsys.readouterr().out)
    assert (status["running"], status["ready"]) == (started is None, ready)


def test_down_asks_the_process_to_end(
    tmp_path: Path, process: subprocess.Popen[bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    """The command waits until the process has ended, and keeps the data."""
    (tmp_path / "kafka").mkdir()
    write_report(tmp_path, process.pid)
    reaped = subprocess.Popen([sys.executable, "-c", _DOWN, str(tmp_path)], stdout=subprocess.PIPE)
    assert process.wait(30) == -15
    out, _ = reaped.communicate(timeout=30)
    assert (reaped.returncode, out.decode()) == (0, f"stopped (pid {process.pid})\n")
    assert (tmp_path / "kafka").exists()
    assert main(["down", "--data-dir", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"nothing runs with --data-dir {tmp_path}\n"


_DOWN = "import sys; from tidemill_operator.cli.main import main; sys.exit(main(['down', '--data-dir', sys.argv[1]]))"


def test_another_process_with_the_same_pid_is_not_ended(
    tmp_path: Path, process: subprocess.Popen[bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    write_report(tmp_path, process.pid, started="long ago")
    assert main(["down", "--data-dir", str(tmp_path)]) == 0
    assert "nothing runs" in capsys.readouterr().out
    assert process.poll() is None


def test_deleting_the_data_leaves_other_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("kafka", "state", "secrets"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").write_text("x")
    for name in ("lock", "ports.json", "notes.txt"):
        (tmp_path / name).write_text("x")
    assert main(["down", "--data-dir", str(tmp_path), "--delete-data"]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    assert f"deleted the data in {tmp_path}" in capsys.readouterr().out


def test_a_folder_without_a_lock_is_not_deleted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder without our lock was never a data folder."""
    (tmp_path / "kafka").mkdir()
    assert main(["down", "--data-dir", str(tmp_path), "--delete-data"]) == 0
    assert (tmp_path / "kafka").exists()
    assert "has no data of Tidemill" in capsys.readouterr().out


def test_data_in_use_is_not_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "kafka").mkdir()
    monkeypatch.setattr("tidemill_operator.cli.down.locked", lambda path, wait_seconds: locked(path))
    with locked(tmp_path / "lock"):
        assert main(["down", "--data-dir", str(tmp_path), "--delete-data"]) == 1
    assert "stop that process first" in capsys.readouterr().err
    assert (tmp_path / "kafka").exists()
