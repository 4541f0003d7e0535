"""Checks the user's file, Kafka and the backlog regularly, in separate threads."""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

from confluent_kafka import KafkaException

from tidemill_contract.files import read_bytes
from tidemill_processor.source.stage_topic import StageBacklog
from tidemill_processor.stage import metrics
from tidemill_processor.stage.wait_reason import WaitReasonWriter

log = logging.getLogger(__name__)

EVERY_SECONDS = 1.0


def file_hash(path: Path) -> str:
    """Return a hash of a file's content, or an empty string if the file cannot be read."""
    try:
        return hashlib.sha256(read_bytes(path)).hexdigest()
    except OSError:
        return ""


class StageChecks:
    """The checks of one Python stage.

    Attributes:
        kafka_error: why Kafka does not answer, or an empty string.
        answered_at: when Kafka last answered (monotonic seconds), or 0 if Kafka never answered.
        lag: the number of records that the stage has not committed, or None if unknown.
    """

    def __init__(
        self,
        file: Path,
        stage_backlog: StageBacklog,
        wait_reason_writer: WaitReasonWriter,
        *,
        wait_reason: Callable[[], str],
        on_change: Callable[[], None],
    ) -> None:
        self._file, self._stage_backlog, self._wait_reason_writer = file, stage_backlog, wait_reason_writer
        self._wait_reason, self._on_change = wait_reason, on_change
        self._hashes: dict[Path, str] = {file: file_hash(file)}
        self._stopping = threading.Event()
        self.kafka_error = "not connected yet"
        self.answered_at = 0.0
        self.lag: int | None = None
        self.partitions = 0
        self.imported: tuple[Path, ...] = ()

    def start(self) -> None:
        """Start the threads of the checks."""
        for check in (self.check_file, self._check_kafka):
            threading.Thread(target=self._repeat, args=(check,), name=check.__name__.strip("_"), daemon=True).start()

    def stop(self) -> None:
        """Stop the threads of the checks."""
        self._stopping.set()

    def check_file(self) -> None:
        """Call `on_change` if the content of the user's file or of an imported file has changed."""
        if any([self._has_changed(path) for path in (self._file, *self.imported)]):
            self._on_change()

    def _has_changed(self, path: Path) -> bool:
        now = file_hash(path)
        if not now:  # A file is missing for a moment while an editor or Kubernetes replaces it.
            return False
        before, self._hashes[path] = self._hashes.get(path, now), now
        return before != now

    def _repeat(self, check: Callable[[], None]) -> None:
        while not self._stopping.is_set():
            try:
                check()
            except Exception:
                log.exception("%s", check.__name__)
            self._stopping.wait(EVERY_SECONDS)

    def _check_kafka(self) -> None:
        try:
            self._wait_reason_writer.write(self._wait_reason())
            if self.partitions:
                self.lag = sum(self._stage_backlog.lag_by_partition(range(self.partitions)).values())
                metrics.STAGE_LAG.set(self.lag)
        except KafkaException as error:
            self.kafka_error, self.lag = str(error.args[0].str() if error.args else error), None
        else:
            self.kafka_error, self.answered_at = "", time.monotonic()
