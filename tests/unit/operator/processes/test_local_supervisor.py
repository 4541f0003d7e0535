"""Tests of the supervisor of child processes, with real processes: restarts, readiness, changes and ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tidemill_operator.processes.child import Command, start_time
from tidemill_operator.processes.ports import Ports
from tidemill_operator.processes.replica import ReplicaSpec, is_ready
from tidemill_operator.processes.supervisor import ReplicaState, Supervisor
from waiting import eventually

SERVING = textwrap.dedent("""
    import http.server, os, sys
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
        def log_message(self, *arguments):
            pass
    print("serving", os.environ.get("TIDEMILL_MARK", ""), flush=True)
    http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
""")
DEAF = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[Supervisor]:
    supervised = Supervisor(tmp_path)
    supervised.start()
    yield supervised
    supervised.close()


@pytest.fixture
def port(tmp_path: Path) -> int:
    return Ports(tmp_path / "ports.json").get("test")


def spec(port: int, *, script: str = SERVING, revision: str = "", grace_seconds: float = 5.0) -> ReplicaSpec:
    arguments = [sys.executable, "-c", script, str(port)]
    command = Command("ns.w-0", arguments, environment=dict(os.environ), grace_seconds=grace_seconds)
    return ReplicaSpec(command=command, port=port, ready_path="/readyz", revision=revision)


def state(supervisor: Supervisor) -> ReplicaState:
    return supervisor.states()["ns.w-0"]


def ready_pid(supervisor: Supervisor, *, not_pid: int | None = None) -> int:
    """Return the pid of the ready replica, once it is another pid than `not_pid`."""
    eventually(
        lambda: state(supervisor).ready and state(supervisor).pid not in (None, not_pid),
        seconds=20,
        what="the replica is ready",
    )
    pid = state(supervisor).pid
    assert pid is not None
    return pid


def test_a_killed_process_is_started_again_at_once(supervisor: Supervisor, port: int) -> None:
    """After SIGKILL another process runs within half a second, also after repeated kills."""
    supervisor.set_desired("ns.w-0", spec(port))
    pid = ready_pid(supervisor)
    for _ in range(3):
        os.kill(pid, signal.SIGKILL)
        eventually(
            lambda killed=pid: state(supervisor).pid not in (None, killed),  # type: ignore[misc]
            seconds=0.5,
            what="another process runs",
        )
        pid = ready_pid(supervisor, not_pid=pid)
    assert state(supervisor).restarts == 3
    assert state(supervisor).last_exit == -signal.SIGKILL


def test_a_process_that_never_gets_ready_is_restarted_with_growing_delays(supervisor: Supervisor, port: int) -> None:
    """The delays of 0.2, 0.4 and 0.8 s pass before the fourth start."""
    supervisor.set_desired("ns.w-0", spec(port, script="raise SystemExit(3)"))
    began = time.monotonic()
    eventually(lambda: state(supervisor).restarts >= 4, seconds=20, what="four ends")
    assert time.monotonic() - began >= 1.4
    assert state(supervisor).last_exit == 3
    assert not state(supervisor).ready


def test_a_frozen_process_is_not_replaced(supervisor: Supervisor, port: int) -> None:
    """SIGSTOP makes the process unready without a restart. SIGCONT makes the same process ready again."""
    supervisor.set_desired("ns.w-0", spec(port))
    pid = ready_pid(supervisor)
    os.kill(pid, signal.SIGSTOP)
    eventually(lambda: not state(supervisor).ready, seconds=10, what="the process is not ready")
    assert state(supervisor).pid == pid
    os.kill(pid, signal.SIGCONT)
    eventually(lambda: state(supervisor).ready, seconds=10, what="the process is ready again")
    assert (state(supervisor).pid, state(supervisor).restarts) == (pid, 0)


def test_the_same_spec_again_changes_nothing(supervisor: Supervisor, port: int) -> None:
    """An equal spec keeps the process. Another revision replaces it."""
    assert supervisor.set_desired("ns.w-0", spec(port)) is True
    pid = ready_pid(supervisor)
    assert supervisor.set_desired("ns.w-0", spec(port)) is False
    assert supervisor.set_desired("ns.w-0", spec(port, revision="2")) is True
    assert ready_pid(supervisor, not_pid=pid) != pid
    assert state(supervisor).restarts == 0


def test_an_unwanted_process_ends_even_if_it_ignores_sigterm(supervisor: Supervisor, port: int, tmp_path: Path) -> None:
    """SIGKILL follows after the grace period. Neither a process nor a pid file remains."""
    supervisor.set_desired("ns.w-0", spec(port, script=DEAF, grace_seconds=0.3))
    eventually(lambda: state(supervisor).pid is not None, seconds=10, what="the process is started")
    pid = state(supervisor).pid
    assert pid is not None
    supervisor.set_desired("ns.w-0", None)
    eventually(lambda: not supervisor.states(), seconds=10, what="the process has ended")
    assert start_time(pid) is None
    assert list((tmp_path / "run").glob("*.pid")) == []


def test_a_left_over_process_is_ended_before_supervision_begins(tmp_path: Path, port: int) -> None:
    """The process of a killed run must not run beside a new one."""
    first = Supervisor(tmp_path)
    first.start()
    first.set_desired("ns.w-0", spec(port))
    pid = ready_pid(first)
    second = Supervisor(tmp_path)
    first._closing.set()  # the first supervisor counts as dead
    second.start()
    try:
        assert start_time(pid) is None
    finally:
        first.close()
        second.close()


def test_logs_are_kept_over_restarts(supervisor: Supervisor, port: int, tmp_path: Path) -> None:
    """Each start writes a new log, and former logs are kept."""
    supervisor.set_desired("ns.w-0", spec(port))
    pid = ready_pid(supervisor)
    os.kill(pid, signal.SIGKILL)
    ready_pid(supervisor, not_pid=pid)
    logs = sorted(path.name for path in (tmp_path / "logs").iterdir())
    assert logs == ["ns.w-0.log", "ns.w-0.log.1"]
    assert (tmp_path / "logs" / "ns.w-0.log.1").read_text().startswith("serving")


def test_a_process_is_not_ready_while_another_answers_on_its_port(supervisor: Supervisor, port: int) -> None:
    with subprocess.Popen([sys.executable, "-c", SERVING, str(port)], stdout=subprocess.DEVNULL) as foreign:
        try:
            eventually(lambda: is_ready(port, "/readyz"), what="the foreign process answers")
            supervisor.set_desired("ns.w-0", spec(port, script=f"import time; time.sleep(0.5)\n{SERVING}"))
            eventually(lambda: state(supervisor).restarts > 0, seconds=20, what="the port is refused")
            assert state(supervisor).ready is False
        finally:
            foreign.kill()
    assert ready_pid(supervisor)
