"""Watches the stage from other threads: its function, its file, Kafka and the backlog."""

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
from tidemill_processor.stage.function import UserFunction
from tidemill_processor.stage.notes import Notes

log = logging.getLogger(__name__)

EVERY_SECONDS = 1.0
SLOW_SECONDS = 30.0
"""If a call of the user's function takes longer, it is reported, and Kafka aborts the transaction."""


def mark(path: Path) -> str:
    """Return a hash of a file's content, or an empty string if it cannot be read."""
    try:
        return hashlib.sha256(read_bytes(path)).hexdigest()
    except OSError:
        return ""


class Watch:
    """The checks of one stage.

    Args:
        function: the user's function.
        upstream: reads the backlog.
        notes: tells the operator why the stage waits.
        waits: returns why the stage waits, or an empty string if it is running.
        changed: called when the file has changed since this object was created, or when another file in its folder has
            changed since it was imported.

    Attributes:
        kafka_error: why Kafka does not answer, or an empty string if it answers.
        answered_at: when Kafka last answered (monotonic seconds), or 0 if it never did.
        lag: the number of records that the stage has not committed, or None if unknown.
        partitions: the number of the source topic's partitions, set by the stage as soon as it knows it.
    """

    def __init__(
        self,
        function: UserFunction,
        upstream: Upstream,
        notes: Notes,
        waits: Callable[[], str],
        changed: Callable[[], None],
    ) -> None:
        self._function, self._upstream, self._notes = function, upstream, notes
        self._waits, self._changed = waits, changed
        self._mark = mark(function.path)
        self._imported: dict[Path, str] = {}
        self._stopping = threading.Event()
        self.kafka_error = "not connected yet"
        self.answered_at = 0.0
        self.lag: int | None = None
        self.partitions = 0

    @property
    def hangs(self) -> str:
        """A message if importing the file or calling the function takes too long. Otherwise, it is empty."""
        return self.hangs_for(SLOW_SECONDS)

    def hangs_for(self, seconds: float) -> str:
        """Return a message if a call has taken longer than `seconds`. Otherwise, return an empty string."""
        function, since = self._function, self._function.busy_since
        if since is None or (taken := time.monotonic() - since) < seconds:
            return ""
        at = function.hangs_at
        return f"{function.place} has not returned for {taken:.0f} s" + (f" ({at})" if at else "")

    def start(self) -> None:
        """Start the threads. They are daemon threads, so a hung check does not delay the end of the process."""
        for look in (self.look_at_file, self._look_at_kafka):
            threading.Thread(target=self._repeat, args=(look,), name=look.__name__.strip("_"), daemon=True).start()

    def stop(self) -> None:
        """Stop the checks."""
        self._stopping.set()

    def look_at_file(self) -> None:
        """Call `changed` if the content of the file, or of another file that it imported, has changed."""
        # Ignore a file that is missing briefly, while an editor or Kubernetes replaces it.
        now = mark(self._function.path)
        if (now and now != self._mark) or any(map(self._has_changed, self._function.imported)):
            self._changed()

    def _has_changed(self, path: Path) -> bool:
        now = mark(path)
        return bool(now) and self._imported.setdefault(path, now) != now

    def _repeat(self, look: Callable[[], None]) -> None:
        while not self._stopping.is_set():
            try:
                look()
            except Exception:
                log.exception("%s", look.__name__)
            self._stopping.wait(EVERY_SECONDS)

    def _look_at_kafka(self) -> None:
        try:
            self._notes.tell(self._waits() or self.hangs)
            if self.partitions:
                self.lag = sum(self._upstream.unstaged(range(self.partitions)).values())
                metrics.STAGE_LAG.set(self.lag)
        except KafkaException as error:
            self.kafka_error, self.lag = str(error.args[0].str() if error.args else error), None
        else:
            self.kafka_error, self.answered_at = "", time.monotonic()
