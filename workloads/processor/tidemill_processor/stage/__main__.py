"""Runs the Python stage of one pipeline: `python -m tidemill_processor.stage`.

Environment variables `TIDEMILL_…` configure it.

When the user's file or one of its imports changes, the process ends its transaction and restarts itself, so that no old
code stays in memory.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from confluent_kafka import TopicCollection
from confluent_kafka.admin import AdminClient

from tidemill_chassis.health import Dependency, report
from tidemill_chassis.service import log_to_stderr, run_service
from tidemill_contract import names
from tidemill_contract.runtime import WorkloadSettings
from tidemill_processor.source.staged import Upstream, connection_of
from tidemill_processor.stage import metrics
from tidemill_processor.stage.application import StageApplication
from tidemill_processor.stage.function import LoadError, UserFunction
from tidemill_processor.stage.notes import Notes
from tidemill_processor.stage.positions import Places, PositionsLost
from tidemill_processor.stage.rewriting import Rewriter
from tidemill_processor.stage.watch import Watch

log = logging.getLogger("tidemill_processor.stage")

STUCK_SECONDS = 120.0
"""If a call of the user's function takes longer than this, the process is replaced."""
_AGAIN_SECONDS = 2.0
_LOAD_AGAIN_SECONDS = 60.0
_ASK_SECONDS = 5.0


class Stage:
    """The stage of one pipeline, and its state for `/health`."""

    def __init__(self, settings: WorkloadSettings) -> None:
        config = settings.load_pipeline(settings.pipeline)
        python = config.spec.transform.python
        if python is None:
            raise SystemExit(f"{settings.pipeline} has no spec.transform.python; a stage is not needed")
        self._settings, self._config = settings, config
        self._connection = connection_of(settings)
        self.function = UserFunction((settings.stage_dir or Path()) / python.file, python.function)
        notes = Notes(self._connection, group=self._group("stage-state"), topic=config.events_topic)
        upstream = Upstream(self._connection, config)
        self.watch = Watch(self.function, upstream, notes, lambda: self._waits, self._reload)
        self._application: StageApplication | None = None
        self._stopping = threading.Event()
        self._waits = ""
        self._failed = ""
        self._loaded = False
        self._was_well = False
        self.reloads = False

    def _group(self, reader: str) -> str:
        return names.consumer_group(self._config.namespace, self._config.name, reader)

    def _reload(self) -> None:
        if not self.reloads:
            log.info("%s is loaded again", self.function.path)
        self.reloads = True
        self.stop()
        if self.watch.hangs:
            # The function never returns, so neither does the main thread. Kafka aborts the open transaction, and its
            # records are processed again.
            log.warning("%s; the process is replaced", self.watch.hangs)
            replace_process()

    def stop(self) -> None:
        """Let `run` return. May be called several times, by any thread, and in a signal handler."""
        self._stopping.set()
        if self._application is not None:
            # A process that only reloads its file keeps its partitions.
            self._application.stop(leave=not self.reloads)

    def run(self) -> None:
        """Load the file and process records until `stop()` is called. While there is a problem, report it and wait."""
        self.watch.start()
        try:
            self.function.load()
            self._loaded = True
        except LoadError as error:
            self._wait(str(error))
            # A module that the file imports may be missing only for now, so import the file again even if it has not
            # changed.
            if not self._stopping.wait(_LOAD_AGAIN_SECONDS):
                self._reload()
        while not self._stopping.is_set():
            try:
                self._process()
                break
            except PositionsLost as error:
                self._wait(str(error))
            except Exception as error:  # errors of Kafka, also as wrapped by Quix Streams; nothing is lost
                self._failed = " ".join(str(error).split()) or type(error).__name__
                log.warning("processing has stopped, and begins again: %s", self._failed)
            self._application = None
            self._stopping.wait(_AGAIN_SECONDS)
        self.watch.stop()

    def _wait(self, text: str) -> None:
        if self._waits != text:
            log.error("%s", text)
        self._waits = text

    def _process(self) -> None:
        topic_id, partitions = self._describe()
        places = Places(
            self._connection,
            group=self._group("stage"),
            source=self._config.events_topic,
            stage=self._config.read_topic,
        )
        try:
            places.prepare(partitions, topic_id, self._config.spec.source.topic.start_from)
        finally:
            places.close()
        self.watch.partitions = partitions
        self._application = StageApplication(
            self._settings,
            self._config,
            self._connection,
            rewriter=Rewriter(self.function),
            topic_id=topic_id,
        )
        self._waits = self._failed = ""
        if not self._stopping.is_set():
            self._application.run()
            self._stopping.set()

    def _describe(self) -> tuple[str, int]:
        """Return the id and the number of partitions of the source topic.

        Raises:
            KafkaException: the topic does not exist, or Kafka does not answer.
        """
        topic = self._config.events_topic
        admin = AdminClient({**self._connection, "log_level": 3})
        asked = admin.describe_topics(TopicCollection([topic]), request_timeout=_ASK_SECONDS)[topic]
        found = asked.result(timeout=_ASK_SECONDS + 1)
        return str(found.topic_id), len(found.partitions)

    def health(self) -> tuple[int, dict[str, Any]]:
        """Return the status code and body of /health."""
        watch = self.watch
        broken = self._waits or watch.hangs or ("" if self._loaded else "the file is being imported")
        kafka = watch.kafka_error or self._failed
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
        """Return whether this process has ever been healthy, is not waiting, and the function returns in time."""
        self._was_well = self._was_well or self.health()[0] == 200
        return self._was_well and not self._waits and not self.watch.hangs

    def live(self) -> bool:
        """Return whether the user's function returns in time."""
        return not self.watch.hangs_for(STUCK_SECONDS)


def replace_process() -> NoReturn:
    """Restart this program in the same process. It does not return. Any thread may call it."""
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2:
            with suppress(OSError):
                os.set_inheritable(int(name), False)
    os.execv(sys.executable, [sys.executable, "-m", "tidemill_processor.stage"])  # noqa: S606 - this program itself


def main() -> int:
    """Run the stage and return the exit code."""
    settings = WorkloadSettings.from_env()
    log_to_stderr(settings)
    metrics.begin_at_zero()
    stage = Stage(settings)
    run_service(stage, settings, log=log, doing=f"staging {settings.pipeline}")
    if stage.reloads:
        replace_process()
    return 0


if __name__ == "__main__":
    sys.exit(main())
