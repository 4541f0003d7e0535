"""Tests of `tidemill replay`: its request to a running `up`, its output and its exit codes."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tidemill_operator.cli import replay as command
from tidemill_operator.cli.main import main
from tidemill_operator.laptop.requests import Requests
from tidemill_operator.plan.replay import REPLAY, name_prefix
from tidemill_operator.processes.child import start_time

RUNNING = {
    "reader": "replay-x-1",
    "phase": "Replaying",
    "versions": {"by_carrier": 2},
    "processed": 1_500,
    "left": 500,
    "partitionsHandedOver": 1,
}


class Up:
    """The files that a running `up` writes for a pipeline."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.requests = folder, Requests(folder / "requests")
        self.write_state()

    def write_state(self, *, version: int = 1, replay: dict[str, Any] | None = None) -> None:
        pipeline = {"aggregations": [{"name": "by_carrier", "version": version}], "replay": replay or {}}
        state = {"pid": os.getpid(), "started": start_time(os.getpid()), "pipelines": {"air/flights": pipeline}}
        partial = self.folder / "partial"
        partial.write_text(json.dumps(state))
        partial.replace(self.folder / "status.json")

    @property
    def request(self) -> str:
        return self.requests.read("air", "flights").get(REPLAY, "")

    def runs_when_asked(self, *steps: Callable[[str], None]) -> threading.Thread:
        """Start a thread that waits for a request, and then runs these steps. Each step gets the reader prefix."""

        def act() -> None:
            while not self.request:
                time.sleep(0.01)
            for step in steps:
                step(name_prefix(self.request))
                time.sleep(0.1)

        thread = threading.Thread(target=act, daemon=True)
        thread.start()
        return thread


@pytest.fixture
def up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Up:
    """Return an `up` that runs, with short waits of the command."""
    monkeypatch.setattr(command, "_POLL_SECONDS", 0.02)
    monkeypatch.setattr(command, "_PRINT_SECONDS", 0.0)
    return Up(tmp_path)


def run(up: Up, *arguments: str) -> int:
    return main(["replay", *arguments, "--data-dir", str(up.folder)])


def test_a_replay_is_followed_until_it_is_done(up: Up, capsys: pytest.CaptureFixture[str]) -> None:
    thread = up.runs_when_asked(
        lambda prefix: up.write_state(replay={**RUNNING, "reader": f"{prefix}1"}),
        lambda prefix: up.write_state(version=2, replay={"reader": f"{prefix}1", "phase": "Done"}),
    )
    assert run(up, "flights", "--aggregation", "by_carrier", "--rate", "300") == 0
    thread.join()
    request = json.loads(up.request)
    assert (request["aggregations"], request["from"], request["rate"]) == (["by_carrier"], "earliest", 300)
    assert capsys.readouterr().out.splitlines() == [
        "air/flights: by_carrier version 2: 75 %, 1,500 events counted, 500 left, partitions handed over: 1",
        "air/flights: done; in force: by_carrier version 2",
    ]


def test_a_replay_that_missed_events_reports_them_with_its_own_exit_status(
    up: Up, capsys: pytest.CaptureFixture[str]
) -> None:
    """Missed events are printed on the way and at the end."""
    missed = {"missed": "events that the topic no longer holds are not counted (offsets 0: 7 to 9)"}
    thread = up.runs_when_asked(
        lambda prefix: up.write_state(replay={**RUNNING, "reader": f"{prefix}1", **missed}),
        lambda prefix: up.write_state(version=2, replay={"reader": f"{prefix}1", "phase": "Done", **missed}),
    )
    assert run(up, "flights") == 3
    thread.join()
    under_way, done = capsys.readouterr().out.splitlines()
    assert under_way.endswith(f"partitions handed over: 1; {missed['missed']}")
    assert done == f"air/flights: done; in force: by_carrier version 2; but {missed['missed']}"


def test_a_cancelled_replay_is_exit_code_1(up: Up, capsys: pytest.CaptureFixture[str]) -> None:
    thread = up.runs_when_asked(
        lambda prefix: up.write_state(replay={**RUNNING, "reader": f"{prefix}1"}), lambda _: up.write_state()
    )
    assert run(up, "flights") == 1
    thread.join()
    assert capsys.readouterr().out.endswith("air/flights: cancelled\n")


def test_a_replay_is_requested_and_cancelled_without_waiting(up: Up) -> None:
    """Two requests always differ."""
    assert run(up, "air/flights", "--no-wait") == 0
    first = up.request
    assert run(up, "flights", "--no-wait") == 0
    assert first != up.request
    assert run(up, "flights", "--cancel") == 0
    assert up.request == ""


def test_a_replay_that_cannot_begin_ends_with_1_and_the_remedy(up: Up, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(up, "trains") == 1
    assert run(up, "flights", "--aggregation", "by_tail") == 1
    assert run(up, "flights", "--rate", "-1") == 1
    up.write_state(replay=RUNNING)
    assert run(up, "flights") == 1
    errors = capsys.readouterr().err.splitlines()
    assert errors[0].startswith("tidemill replay: no pipeline 'trains' runs here")
    assert errors[1].endswith("['by_tail'] do not all exist; name some of by_carrier, or leave it out")
    assert errors[2].endswith("rate -1 is not a number of events per second; write a whole number, or leave it out")
    assert errors[3].startswith("tidemill replay: air/flights is being replayed: by_carrier version 2: 75 %")
    assert up.request == ""
