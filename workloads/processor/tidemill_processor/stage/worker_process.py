"""Starts the worker process of the stage, reads its reports, and ends it."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from tidemill_processor.stage.attempts import RecordPosition
from tidemill_processor.stage.calls import Call, CallMemory
from tidemill_processor.stage.reports import Refusal, WorkerReport, WorkerSetup, encoded, read_report

_LINE_SECONDS, _PAUSE_SECONDS = 1.0, 0.02
_KILLED_SECONDS = 5.0
_STACK_BYTES = 65_536
_NO_MORE = b"end\n"
_FRAME = re.compile(r'File "(.*)", line (\d+)')


class WorkerProcess:
    """A worker process. `kill` and `stop` also end processes that the user's function has started."""

    def __init__(self, given_up: Mapping[RecordPosition, str], on_report: Callable[[WorkerReport], None]) -> None:
        self.report = WorkerReport()
        self._on_report = on_report
        self._calls = CallMemory()
        self._stack, stack = os.pipe()
        # This process keeps the writing end of the pipe open, to write a last line in `_end_reports`.
        self._reports, self._reports_end = os.pipe()
        refused = tuple(Refusal(place, why) for place, why in given_up.items())
        setup = WorkerSetup(os.getpid(), self._calls.descriptor, self._reports_end, stack, refused)
        os.set_blocking(self._stack, False)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tidemill_processor.stage.worker"],
                stdin=subprocess.PIPE,
                pass_fds=(self._calls.descriptor, self._reports_end, stack),
                process_group=0,
            )
        finally:
            os.close(stack)
        assert self._process.stdin is not None  # noqa: S101 - it is a pipe
        with contextlib.suppress(BrokenPipeError), self._process.stdin as pipe:
            pipe.write(encoded(setup))
        self._reader = threading.Thread(target=self._read, name="stage-reports", daemon=True)
        self._reader.start()

    @property
    def call(self) -> Call:
        """The current or last call of the function."""
        return self._calls.call

    @property
    def exit_code(self) -> int | None:
        """The exit status (negative for a signal), or None while the process runs."""
        return self._process.poll()

    def current_line_in(self, file: Path) -> str:
        """Return the line of `file` that the worker runs now. If the worker runs other code, return an empty string."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGUSR1)
        text, deadline = "", time.monotonic() + _LINE_SECONDS
        while time.monotonic() < deadline:
            with contextlib.suppress(BlockingIOError):
                text += os.read(self._stack, _STACK_BYTES).decode(errors="replace")
            for name, line in _FRAME.findall(text):
                if name == str(file):
                    return f"{file.name}, line {line}"
            time.sleep(_PAUSE_SECONDS)
        return ""

    def stop(self, seconds: float, *, leave: bool) -> None:
        """Ask the worker to end, wait at most `seconds`, and then kill the worker."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM if leave else signal.SIGUSR2)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(seconds)
        self.kill()

    def kill(self) -> None:
        """Kill the worker and the processes that it started, and read the last report."""
        # On macOS, sending a signal to a group of ended processes fails.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.kill()
        self._process.wait(_KILLED_SECONDS)
        self._reap()
        self._end_reports()
        os.close(self._stack)
        self._calls.close()

    def _reap(self) -> None:
        deadline = time.monotonic() + _KILLED_SECONDS
        with contextlib.suppress(ChildProcessError):
            while time.monotonic() < deadline:
                if os.waitpid(-self._process.pid, os.WNOHANG)[0] == 0:
                    time.sleep(_PAUSE_SECONDS)

    def _end_reports(self) -> None:
        # End the thread that reads reports. A killed process may have left an incomplete line. The line break ends this
        # line.
        os.write(self._reports_end, b"\n" + _NO_MORE)
        self._reader.join(_KILLED_SECONDS)
        os.close(self._reports_end)

    def _read(self) -> None:
        with os.fdopen(self._reports, "rb") as lines:
            for line in lines:
                if line == _NO_MORE:
                    return
                # A killed process may leave an incomplete line.
                with contextlib.suppress(msgspec.MsgspecError):
                    self.report = read_report(line)
                    self._on_report(self.report)
