"""Tests of running a service: its status server answers, and signals stop it."""

from __future__ import annotations

import logging
import os
import signal
import threading
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from tidemill_chassis.service import run_service
from tidemill_contract.runtime import WorkloadSettings

log = logging.getLogger("test_service")


@pytest.fixture
def handlers() -> Iterator[None]:
    """Restore the signal handlers of the test runner."""
    former = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in former.items():
        signal.signal(number, handler)


class Working:
    """A service that requests its status, sends a signal to its process, and waits for `stop`."""

    def __init__(self, number: signal.Signals, caplog: pytest.LogCaptureFixture) -> None:
        self._number, self._caplog = number, caplog
        self._stopped = threading.Event()
        self.answer = 0

    def run(self) -> None:
        port = self._caplog.messages[-1].rpartition(" ")[2]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=10) as response:
            self.answer = response.status
        os.kill(os.getpid(), self._number)
        assert self._stopped.wait(10)

    def stop(self) -> None:
        self._stopped.set()

    def health(self) -> tuple[int, dict[str, Any]]:
        return 200, {}

    def ready(self) -> bool:
        return True

    def live(self) -> bool:
        return True


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
@pytest.mark.usefixtures("handlers")
def test_a_running_service_answers_readyz_and_stops_at_a_signal(
    number: signal.Signals, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    service = Working(number, caplog)
    settings = WorkloadSettings(host="127.0.0.1", port=0)
    run_service(service, settings, log=log, description="working")
    assert service.answer == 200
    assert caplog.messages[0].startswith("working on port ")
