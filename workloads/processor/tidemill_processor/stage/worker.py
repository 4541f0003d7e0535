"""Runs the user's function: `python -m tidemill_processor.stage.worker`.

The stage starts the worker as a separate process. If a call hangs or ends the worker, the stage keeps running.
"""

from __future__ import annotations

import ctypes
import faulthandler
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from confluent_kafka.admin import AdminClient

from tidemill_chassis.service import log_to_stderr
from tidemill_contract import names
from tidemill_contract.runtime import PipelineConfig, WorkloadSettings
from tidemill_processor.source.stage_topic import platform_kafka_settings
from tidemill_processor.source.topic_admin import describe_topic
from tidemill_processor.stage import metrics
from tidemill_processor.stage.application import StageApplication
from tidemill_processor.stage.calls import CallMemory
from tidemill_processor.stage.function import LoadError, UserFunction
from tidemill_processor.stage.positions import PositionsLost, StagePositions
from tidemill_processor.stage.reports import WorkerReport, WorkerSetup, encoded, read_setup
from tidemill_processor.stage.rewriting import Rewriter

log = logging.getLogger("tidemill_processor.stage")

REPORT_SECONDS = 0.5
_AGAIN_SECONDS = 2.0
_LOAD_AGAIN_SECONDS = 60.0
_DIE_WITH_PARENT = 1


class Worker:
    """The process that runs the user's function."""

    def __init__(self, settings: WorkloadSettings, config: PipelineConfig, setup: WorkerSetup) -> None:
        python = config.spec.transform.python
        assert python is not None  # noqa: S101 - the stage has checked it
        self._settings, self._config, self._setup = settings, config, setup
        self._connection = platform_kafka_settings(settings)
        self._calls = CallMemory(setup.calls)
        self._function = UserFunction((settings.stage_dir or Path()) / python.file, python.function)
        self._application: StageApplication | None = None
        self._stopping = threading.Event()
        self._wait_reason = self._failed = self._topic_id = ""
        self._loaded, self._partitions = False, 0
        self._write_lock = threading.Lock()

    def stop(self, *, leave: bool) -> None:
        """Let `run` return. A signal handler may call this method."""
        self._stopping.set()
        if self._application is not None:
            self._application.stop(leave=leave)

    def run(self) -> None:
        """Load the file and process records until `stop()` is called."""
        threading.Thread(target=self._send_reports, name="stage-reports", daemon=True).start()
        self._calls.begin()
        try:
            self._function.load()
            self._loaded = True
            log.info("%s is loaded", self._function.label)
        except LoadError as error:
            self._set_wait_reason(str(error))
        finally:
            self._calls.end()
        if not self._loaded:
            # Import the file again, because a missing module may be available now.
            self._send_report()
            self._stopping.wait(_LOAD_AGAIN_SECONDS)
            return
        while not self._stopping.is_set():
            try:
                self._process()
                break
            except PositionsLost as error:
                self._set_wait_reason(str(error))
            except Exception as error:  # After an error of Kafka or Quix Streams, start again. No record is lost.
                self._failed = " ".join(str(error).split()) or type(error).__name__
                log.warning("processing has failed and starts again: %s", self._failed)
            self._application = None
            self._stopping.wait(_AGAIN_SECONDS)
        self._send_report()

    def _set_wait_reason(self, text: str) -> None:
        if self._wait_reason != text:
            log.error("%s", text)
        self._wait_reason = text

    def _process(self) -> None:
        topic_id, partitions = describe_topic(
            AdminClient({**self._connection, "log_level": 3}), self._config.events_topic
        )
        positions = StagePositions(
            self._connection,
            group=names.consumer_group(self._config.namespace, self._config.name, "stage"),
            source=self._config.events_topic,
            stage=self._config.read_topic,
        )
        try:
            positions.prepare(partitions, topic_id, self._config.spec.source.topic.start_from)
        finally:
            positions.close()
        self._topic_id, self._partitions = topic_id, partitions
        self._send_report()
        self._application = StageApplication(
            self._settings,
            self._config,
            self._connection,
            rewriter=Rewriter(self._function),
            calls=self._calls,
            topic_id=topic_id,
            given_up=self._given_up(topic_id),
        )
        self._wait_reason = self._failed = ""
        if not self._stopping.is_set():
            self._application.run()
            self._stopping.set()

    def _given_up(self, topic_id: str) -> Mapping[tuple[int, int], str]:
        refused = ((each.place, each.why) for each in self._setup.refused)
        return {(at.partition, at.offset): why for at, why in refused if at.topic_id == topic_id}

    def _send_reports(self) -> None:
        while True:
            try:
                self._send_report()
            except OSError:
                os.killpg(0, signal.SIGKILL)
            time.sleep(REPORT_SECONDS)

    def _send_report(self) -> None:
        report = WorkerReport(
            self._wait_reason,
            self._failed,
            self._loaded,
            self._topic_id,
            self._partitions,
            tuple(map(str, self._function.imported)),
            metrics.totals(),
        )
        with self._write_lock:
            os.write(self._setup.reports, encoded(report))


def _die_with_parent(parent: int) -> None:
    """Let Linux kill this process when the stage ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _isolate_forks(setup: WorkerSetup) -> None:
    """Prevent processes that the user's function starts from inheriting the worker's pipes and signal handlers."""
    for descriptor in (setup.calls, setup.reports, setup.stack):
        os.set_inheritable(descriptor, False)

    # Block signals during a fork, until the child has removed the worker's handlers.
    signals, former = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2), threading.local()

    def before() -> None:
        former.mask = signal.pthread_sigmask(signal.SIG_BLOCK, signals)

    def after() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, former.mask)

    def in_child() -> None:
        for number in signals:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        faulthandler.unregister(signal.SIGUSR1)
        os.close(setup.reports)
        os.close(setup.stack)
        after()

    os.register_at_fork(before=before, after_in_parent=after, after_in_child=in_child)


def main() -> int:
    """Run the worker and return the exit code."""
    setup = read_setup(sys.stdin.buffer.readline())
    _die_with_parent(setup.parent)
    faulthandler.register(signal.SIGUSR1, file=setup.stack, all_threads=True)
    _isolate_forks(setup)
    settings = WorkloadSettings.from_env()
    log_to_stderr(settings)
    worker = Worker(settings, settings.load_pipeline(settings.pipeline), setup)
    for number, leave in ((signal.SIGTERM, True), (signal.SIGINT, True), (signal.SIGUSR2, False)):
        signal.signal(number, lambda *_, leave=leave: worker.stop(leave=leave))
    worker.run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
