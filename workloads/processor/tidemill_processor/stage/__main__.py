"""Runs the Python stage of one pipeline: `python -m tidemill_processor.stage`.

This process starts a worker process. The worker runs the user's function. A worker is replaced if the user's file
changes, or if a call exceeds the timeout.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from pathlib import Path
from typing import Any

from tidemill_chassis.health import Dependency, health_report
from tidemill_chassis.service import log_to_stderr, run_service
from tidemill_contract import names
from tidemill_contract.duration import parse_ms
from tidemill_contract.runtime import WorkloadSettings
from tidemill_processor.source.stage_topic import StageBacklog, platform_kafka_settings
from tidemill_processor.stage import metrics
from tidemill_processor.stage.attempts import Attempts, RecordPosition
from tidemill_processor.stage.calls import Call, CallClock
from tidemill_processor.stage.checks import StageChecks
from tidemill_processor.stage.function import UserFunction
from tidemill_processor.stage.reports import WorkerReport
from tidemill_processor.stage.wait_reason import WaitReasonWriter
from tidemill_processor.stage.worker_process import WorkerProcess

log = logging.getLogger("tidemill_processor.stage")

SLOW_SECONDS = 30.0
"""A call of more than this many seconds is reported, even if its timeout is longer."""
_RUNS_LONG = f"has run for more than {SLOW_SECONDS:.0f} s"
STUCK_SECONDS = 60.0
"""The stage is restarted if it has not checked its worker for this many seconds."""
_SILENT_SECONDS = 60.0
"""A worker is replaced after a silence of this many seconds plus the timeout of a call."""
_TICK_SECONDS = 0.1
_END_SECONDS = 7.0
"""How long (seconds) a worker may take to end. `tidemill up` waits 10 s for the stage."""
_FIRST_PAUSE_SECONDS, _MAX_PAUSE_SECONDS = 0.2, 30.0


class Stage:
    """The Python stage of one pipeline, and its state for `/health`."""

    def __init__(self, settings: WorkloadSettings) -> None:
        config = settings.load_pipeline(settings.pipeline)
        python = config.spec.transform.python
        if python is None:
            raise SystemExit(f"{settings.pipeline} has no spec.transform.python; a stage is not needed")
        self._config, self._timeout = config, parse_ms(python.timeout) / 1000
        connection = platform_kafka_settings(settings)
        self.function = UserFunction((settings.stage_dir or Path()) / python.file, python.function)
        group = names.consumer_group(config.namespace, config.name, "stage-state")
        wait_reason_writer = WaitReasonWriter(connection, group=group, topic=config.events_topic)
        self.checks = StageChecks(
            self.function.path,
            StageBacklog(connection, config),
            wait_reason_writer,
            wait_reason=lambda: self.wait_reason,
            on_change=self._request_reload,
        )
        self._attempts = Attempts()
        self._stopping, self._reload = threading.Event(), threading.Event()
        self._last_report = WorkerReport()
        self._slow_reason = self._end_reason = self._file_error = ""
        self._ended_at: RecordPosition | None = None
        self._was_healthy = False
        self._checked_at = self._heard_at = time.monotonic()

    @property
    def wait_reason(self) -> str:
        """Why the stage processes no events, or an empty string."""
        return self._slow_reason or self._end_reason or self._file_error

    def stop(self) -> None:
        """Let `run` return. This method can be called from any thread or signal handler."""
        self._stopping.set()
        self._reload.set()

    def run(self) -> None:
        """Keep a worker process running until `stop()` is called."""
        self.checks.start()
        pause = _FIRST_PAUSE_SECONDS
        while not self._stopping.is_set():
            self._serve()
            pause = _FIRST_PAUSE_SECONDS if self._last_report.loaded else min(2 * pause, _MAX_PAUSE_SECONDS)
            self._checked_at = time.monotonic()
            self._reload.wait(pause)
        self.checks.stop()

    def _request_reload(self) -> None:
        log.info("%s is loaded again", self.function.path)
        self._reload.set()

    def _serve(self) -> None:
        if self._reload.is_set():
            self._attempts.forget()
            self._reload.clear()
        self._last_report = WorkerReport()
        began = time.monotonic()
        worker, clock = WorkerProcess(self._attempts.given_up, self._handle_report), CallClock(10 * _TICK_SECONDS)
        while not self._stopping.wait(_TICK_SECONDS):
            self._checked_at = now = time.monotonic()
            code, call = worker.exit_code, worker.call
            seconds = clock.seconds(call, now)
            if code is not None:
                worker.kill()
                self._after_exit(code, call)
                return
            if self._reload.is_set():
                break
            if seconds >= self._timeout and self._after_hang(worker, call):
                return
            if now - max(began, self._heard_at) >= self._timeout + _SILENT_SECONDS:
                self._after_silence(worker)
                return
            self._slow_reason = self._describe(call, _RUNS_LONG) if seconds >= SLOW_SECONDS else ""
            self._clear_if_passed(call, healthy=now - began >= 2 * self._timeout + _SILENT_SECONDS)
        self._slow_reason = ""
        patience = 0.0 if clock.seconds(worker.call, time.monotonic()) >= SLOW_SECONDS else _END_SECONDS
        # Stay in the consumer group unless the stage stops. A replacement worker then keeps the partitions.
        worker.stop(patience, leave=self._stopping.is_set())

    def _handle_report(self, latest: WorkerReport) -> None:
        metrics.add_difference(self._last_report.totals, latest.totals)
        self._last_report, self._heard_at = latest, time.monotonic()
        self.checks.partitions, self.checks.imported = latest.partitions, tuple(map(Path, latest.imported))
        if latest.waits or latest.loaded:
            self._file_error = latest.waits

    def _describe(self, call: Call, what: str, line: str = "") -> str:
        where = f" ({line})" if line else ""
        if call.is_import:
            return f"the import of {self.function.path.name} {what}{where}"
        return f"{self.function.label} {what} on {self._config.events_topic}/{call.partition}@{call.offset}{where}"

    def _after_hang(self, worker: WorkerProcess, call: Call) -> bool:
        """End a call that takes too long. Return False if the call has finished meanwhile, else True."""
        line = worker.current_line_in(self.function.path)
        if worker.call != call:
            return False
        worker.kill()
        self._record_ended_call(call, self._describe(call, f"ran for {self._timeout:g} s", line))
        return True

    def _after_silence(self, worker: WorkerProcess) -> None:
        """Replace a worker that does not report, for example because the function never releases Python's GIL."""
        worker.kill()
        self._end_reason = f"the process of {self.function.label} did not answer, and was replaced"
        log.error("%s", self._end_reason)

    def _after_exit(self, code: int, call: Call) -> None:
        if call.is_running:
            how = f"signal {-code}" if code < 0 else f"exit status {code}"
            self._record_ended_call(call, self._describe(call, f"ended its process ({how})"))
        elif code:
            self._end_reason = f"the process of {self.function.label} has ended with exit status {code}; see its log"
            log.error("%s", self._end_reason)

    def _record_ended_call(self, call: Call, what: str) -> None:
        metrics.STAGE_ENDED.inc()
        self._slow_reason = ""
        if call.is_import:
            self._ended_at, self._end_reason = None, f"{what}; it is imported again"
        else:
            self._ended_at = RecordPosition(self._last_report.topic_id, call.partition, call.offset)
            self._end_reason = f"{what}; {self._attempts.record_failure(self._ended_at, what)}"
        log.error("%s", self._end_reason)

    def _clear_if_passed(self, call: Call, *, healthy: bool) -> None:
        at, latest = self._ended_at, self._last_report
        if at is None:
            passed = latest.loaded
        else:
            passed = call.partition == at.partition and call.offset > at.offset
            passed = passed or (bool(latest.topic_id) and (healthy or self.checks.lag == 0))
        if passed:
            self._end_reason, self._ended_at = "", None

    def health(self) -> tuple[int, dict[str, Any]]:
        """Return the status code and body of /health."""
        checks, latest = self.checks, self._last_report
        broken = self.wait_reason or ("" if latest.loaded else "the file is being imported")
        kafka = checks.kafka_error or latest.failed
        return health_report(
            "stage",
            [Dependency("kafka", not kafka, True, kafka), Dependency("function", not broken, True, broken)],
            {
                "pipeline": f"{self._config.namespace}/{self._config.name}",
                "function": self.function.label,
                "lag": checks.lag,
            },
        )

    def ready(self) -> bool:
        """Return True if the stage can process events and was healthy at least once."""
        self._was_healthy = self._was_healthy or self.health()[0] == 200
        return self._was_healthy and not self.wait_reason

    def live(self) -> bool:
        """Return whether the stage has checked its worker in the last `STUCK_SECONDS`."""
        return time.monotonic() - self._checked_at < STUCK_SECONDS


def main() -> int:
    """Run the stage and return the exit code."""
    settings = WorkloadSettings.from_env()
    log_to_stderr(settings)
    metrics.init_counters()
    stage = Stage(settings)
    run_service(stage, settings, log=log, description=f"staging {settings.pipeline}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
