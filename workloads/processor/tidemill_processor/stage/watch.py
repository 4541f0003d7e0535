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
from tidemill_processor.source.staged import Upstream
from tidemill_processor.stage import metrics
from tidemill_processor.stage.notes import Notes

log = logging.getLogger(__name__)

EVERY_SECONDS = 1.0


def mark(path: Path) -> str:
    """Return a hash of a file's content, or an empty string if the file cannot be read."""
    try:
        return hashlib.sha256(read_bytes(path)).hexdigest()
    except OSError:
        return ""


class Watch:
    """The checks of one Python stage.

    Attributes:
        kafka_error: why Kafka does not answer, or an empty string.
        answered_at: when Kafka last answered (monotonic seconds), or 0 if Kafka never answered.
        lag: the number of records that the stage has not committed, or None if unknown.
    """

    def __init__(
        self,
        file: Path,
        upstream: Upstream,
        notes: Notes,
        *,
        waits: Callable[[], str],
        changed: Callable[[], None],
    ) -> None:
        self._file, self._upstream, self._notes = file, upstream, notes
        self._waits, self._changed = waits, changed
        self._marks: dict[Path, str] = {file: mark(file)}
        self._stopping = threading.Event()
        self.kafka_error = "not connected yet"
        self.answered_at = 0.0
        self.lag: int | None = None
        self.partitions = 0
        self.imported: tuple[Path, ...] = ()

    def start(self) -> None:
        """Start the threads of the checks."""
        for look in (self.look_at_file, self._look_at_kafka):
            threading.Thread(target=self._repeat, args=(look,), name=look.__name__.strip("_"), daemon=True).start()

    def stop(self) -> None:
        """Stop the threads of the checks."""
        self._stopping.set()

    def look_at_file(self) -> None:
        """Call `changed` if the content of the user's file or of an imported file has changed."""
        if any([self._has_changed(path) for path in (self._file, *self.imported)]):
            self._changed()

    def _has_changed(self, path: Path) -> bool:
        now = mark(path)
        if not now:  # A file is missing for a moment while an editor or Kubernetes replaces it.
            return False
        before, self._marks[path] = self._marks.get(path, now), now
        return before != now

    def _repeat(self, look: Callable[[], None]) -> None:
        while not self._stopping.is_set():
            try:
                look()
            except Exception:
                log.exception("%s", look.__name__)
            self._stopping.wait(EVERY_SECONDS)

    def _look_at_kafka(self) -> None:
        try:
            self._notes.tell(self._waits())
            if self.partitions:
                self.lag = sum(self._upstream.unstaged(range(self.partitions)).values())
                metrics.STAGE_LAG.set(self.lag)
        except KafkaException as error:
            self.kafka_error, self.lag = str(error.args[0].str() if error.args else error), None
        else:
            self.kafka_error, self.answered_at = "", time.monotonic()
