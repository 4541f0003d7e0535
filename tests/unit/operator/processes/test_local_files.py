"""Tests of atomic files, locks, stored ports and the identity of child processes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tidemill_operator.processes.child import end_leftover, start_time
from tidemill_operator.processes.files import LockTaken, locked, write_atomic
from tidemill_operator.processes.ports import Ports


def test_an_equal_text_is_not_written_again(tmp_path: Path) -> None:
    """A second write of the same text keeps the inode, and no partial file remains."""
    path = tmp_path / "folder" / "file"
    assert write_atomic(path, "one", mode=0o600) is True
    inode = path.stat().st_ino
    assert write_atomic(path, "one", mode=0o600) is False
    assert path.stat().st_ino == inode
    assert write_atomic(path, "two", mode=0o600) is True
    assert path.read_text() == "two"
    assert path.stat().st_mode & 0o777 == 0o600
    assert [entry.name for entry in path.parent.iterdir()] == ["file"]


def test_a_lock_is_held_by_one_process_and_names_it(tmp_path: Path) -> None:
    """A second process fails with the pid of the holder. Once the lock is free, it gets the lock."""
    path = tmp_path / "lock"
    script = "import sys; from pathlib import Path; from tidemill_operator.processes.files import locked\n"
    script += "with locked(Path(sys.argv[1])): print('got it')"
    taker = [sys.executable, "-c", script, str(path)]
    with locked(path):
        refused = subprocess.run(taker, capture_output=True, text=True, check=False)
    assert refused.returncode == 1
    assert f"locked by process {os.getpid()}" in refused.stderr
    assert subprocess.run(taker, capture_output=True, text=True, check=True).stdout == "got it\n"


def test_a_lock_holds_within_its_process_too(tmp_path: Path) -> None:
    """The lock belongs to the open file, not to the process."""
    with locked(tmp_path / "lock"), pytest.raises(LockTaken), locked(tmp_path / "lock"):
        pass


def test_a_name_keeps_its_port(tmp_path: Path) -> None:
    """A name has the same port in a later run. Two names have different ports."""
    first = Ports(tmp_path / "ports.json")
    kafka, postgres = first.get("kafka"), first.get("postgres")
    later = Ports(tmp_path / "ports.json")
    assert kafka != postgres
    assert (later.get("kafka"), later.get("postgres")) == (kafka, postgres)


def test_a_port_in_use_is_skipped(tmp_path: Path) -> None:
    """A wanted or stored port that is in use is replaced by the next free port."""
    ports = Ports(tmp_path / "ports.json")
    wanted = ports.get("probe")
    ports.forget("probe")
    with socket.create_server(("127.0.0.1", wanted)):
        chosen = ports.get("ingest", wanted=wanted)
    assert wanted < chosen < wanted + 200
    with socket.create_server(("127.0.0.1", chosen)):
        assert ports.get("ingest", wanted=wanted) != chosen


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ("", "an empty file, as a crash may leave"),
        ("[1]", "not a record"),
        (json.dumps({"pid": os.getpid()}), "a record of another version"),
        (
            json.dumps({"pid": os.getpid(), "started": "1", "stop_signal": 15, "grace_seconds": 1}),
            "another process has the pid, here the one of this test",
        ),
    ],
    ids=["empty", "list", "another version", "another process"],
)
def test_a_pid_file_that_names_no_child_of_ours_ends_nothing(tmp_path: Path, record: str, reason: str) -> None:
    """Only the started process is ended, and the stale file is deleted."""
    path = tmp_path / "x.pid"
    path.write_text(record)
    assert end_leftover(path) is False, reason
    assert not path.exists()


def test_the_start_time_identifies_a_living_process() -> None:
    assert start_time(os.getpid()) == start_time(os.getpid()) is not None
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    assert start_time(ended.pid) is None
