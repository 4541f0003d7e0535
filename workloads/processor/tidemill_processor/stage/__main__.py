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

from tidemill_chassis.health import Dependency, report
from tidemill_chassis.service import log_to_stderr, run_service
from tidemill_contract import names
from tidemill_contract.duration import parse_ms
from tidemill_contract.runtime import WorkloadSettings
from tidemill_processor.source.staged import Upstream, connection_of
from tidemill_processor.stage import metrics
from tidemill_processor.stage.attempts import Attempts, Place
from tidemill_processor.stage.calls import Call, CallClock
from tidemill_processor.stage.child import Child
from tidemill_processor.stage.function import UserFunction
from tidemill_processor.stage.notes import Notes
from tidemill_processor.stage.reports import Report
from tidemill_processor.stage.watch import Watch

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
_FIRST_PAUSE_SECONDS, _MOST_PAUSE_SECONDS = 0.2, 30.0


class Stage:
    """The Python stage of one pipeline, and its state for `/health`."""

    def __init__(self, settings: WorkloadSettings) -> None:
        config = settings.load_pipeline(settings.pipeline)
        python = config.spec.transform.python
        if python is None:
            raise SystemExit(f"{settings.pipeline} has no spec.transform.python; a stage is not needed")
        self._config, self._timeout = config, parse_ms(python.timeout) / 1000
        connection = connection_of(settings)
        self.function = UserFunction((settings.stage_dir or Path()) / python.file, python.function)
        group = names.consumer_group(config.namespace, config.name, "stage-state")
        notes = Notes(connection, group=group, topic=config.events_topic)
        self.watch = Watch(
            self.function.path, Upstream(connection, config), notes, waits=lambda: self.waits, changed=self._changed
        )
        self._attempts = Attempts()
        self._stopping, self._reload = threading.Event(), threading.Event()
        self._known = Report()
        self._slow = self._ended = self._file = ""
        self._ended_at: Place | None = None
        self._was_well = False
        self._looked_at = self._heard_at = time.monotonic()

    @property
    def waits(self) -> str:
        """Why the stage processes no events, or an empty string."""
        return self._slow or self._ended or self._file

    def stop(self) -> None:
        """Let `run` return. This method can be called from any thread or signal handler."""
        self._stopping.set()
        self._reload.set()

    def run(self) -> None:
        """Keep a worker process running until `stop()` is called."""
        self.watch.start()
        pause = _FIRST_PAUSE_SECONDS
        while not self._stopping.is_set():
            self._serve()
            pause = _FIRST_PAUSE_SECONDS if self._known.loaded else min(2 * pause, _MOST_PAUSE_SECONDS)
            self._looked_at = time.monotonic()
            self._reload.wait(pause)
        self.watch.stop()

    def _changed(self) -> None:
        log.info("%s is loaded again", self.function.path)
        self._reload.set()

    def _serve(self) -> None:
        if self._reload.is_set():
            self._attempts.forget()
            self._reload.clear()
        self._known = Report()
        began = time.monotonic()
        child, clock = Child(self._attempts.given_up, self._reported), CallClock(10 * _TICK_SECONDS)
        while not self._stopping.wait(_TICK_SECONDS):
            self._looked_at = now = time.monotonic()
            code, call = child.exit_code, child.call
            seconds = clock.seconds(call, now)
            if code is not None:
                child.kill()
                self._after_exit(code, call)
                return
            if self._reload.is_set():
                break
            if seconds >= self._timeout and self._after_hang(child, call):
                return
            if now - max(began, self._heard_at) >= self._timeout + _SILENT_SECONDS:
                self._after_silence(child)
                return
            self._slow = self._told(call, _RUNS_LONG) if seconds >= SLOW_SECONDS else ""
            self._see_progress(call, well=now - began >= 2 * self._timeout + _SILENT_SECONDS)
        self._slow = ""
        patience = 0.0 if clock.seconds(child.call, time.monotonic()) >= SLOW_SECONDS else _END_SECONDS
        # Stay in the consumer group unless the stage stops. A replacement worker then keeps the partitions.
        child.stop(patience, leave=self._stopping.is_set())

    def _reported(self, latest: Report) -> None:
        metrics.count(self._known.totals, latest.totals)
        self._known, self._heard_at = latest, time.monotonic()
        self.watch.partitions, self.watch.imported = latest.partitions, tuple(map(Path, latest.imported))
        if latest.waits or latest.loaded:
            self._file = latest.waits

    def _told(self, call: Call, what: str, line: str = "") -> str:
        where = f" ({line})" if line else ""
        if call.imports:
            return f"the import of {self.function.path.name} {what}{where}"
        return f"{self.function.place} {what} on {self._config.events_topic}/{call.partition}@{call.offset}{where}"

    def _after_hang(self, child: Child, call: Call) -> bool:
        """End a call that takes too long. Return False if the call has finished meanwhile, else True."""
        line = child.line_in(self.function.path)
        if child.call != call:
            return False
        child.kill()
        self._end(call, self._told(call, f"ran for {self._timeout:g} s", line))
        return True

    def _after_silence(self, child: Child) -> None:
        """Replace a worker that does not report, for example because the function never releases Python's GIL."""
        child.kill()
        self._ended = f"the process of {self.function.place} did not answer, and was replaced"
        log.error("%s", self._ended)

    def _after_exit(self, code: int, call: Call) -> None:
        if call.runs:
            how = f"signal {-code}" if code < 0 else f"exit status {code}"
            self._end(call, self._told(call, f"ended its process ({how})"))
        elif code:
            self._ended = f"the process of {self.function.place} has ended with exit status {code}; see its log"
            log.error("%s", self._ended)

    def _end(self, call: Call, what: str) -> None:
        metrics.STAGE_ENDED.inc()
        self._slow = ""
        if call.imports:
            self._ended_at, self._ended = None, f"{what}; it is imported again"
        else:
            self._ended_at = Place(self._known.topic_id, call.partition, call.offset)
            self._ended = f"{what}; {self._attempts.failed(self._ended_at, what)}"
        log.error("%s", self._ended)

    def _see_progress(self, call: Call, *, well: bool) -> None:
        at, latest = self._ended_at, self._known
        if at is None:
            passed = latest.loaded
        else:
            passed = call.partition == at.partition and call.offset > at.offset
            passed = passed or (bool(latest.topic_id) and (well or self.watch.lag == 0))
        if passed:
            self._ended, self._ended_at = "", None

    def health(self) -> tuple[int, dict[str, Any]]:
        """Return the status code and body of /health."""
        watch, latest = self.watch, self._known
        broken = self.waits or ("" if latest.loaded else "the file is being imported")
        kafka = watch.kafka_error or latest.failed
        return report(
            "stage",
            [Dependency("kafka", not kafka, True, kafka), Dependency("function", not broken, True, broken)],
            {
                "pipeline": f"{self._config.namespace}/{self._config.name}",
                "function": self.function.place,
                "lag": watch.lag,
            },
        )

    def ready(self) -> bool:
        """Return True if the stage can process events and was healthy at least once."""
        self._was_well = self._was_well or self.health()[0] == 200
        return self._was_well and not self.waits

    def live(self) -> bool:
        """Return whether the stage has checked its worker in the last `STUCK_SECONDS`."""
        return time.monotonic() - self._looked_at < STUCK_SECONDS


def main() -> int:
    """Run the stage and return the exit code."""
    settings = WorkloadSettings.from_env()
    log_to_stderr(settings)
    metrics.begin_at_zero()
    stage = Stage(settings)
    run_service(stage, settings, log=log, doing=f"staging {settings.pipeline}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
