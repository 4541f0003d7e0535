"""Check continuously that pipelines count their events.

A pipeline is not ready if events wait without progress, or if its positions stay unknown.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tidemill_contract.duration import parse_ms
from tidemill_operator.errors import Reason, TidemillError
from tidemill_operator.keys import Key
from tidemill_operator.observer.stages import read_topics

log = logging.getLogger(__name__)
# After this many seconds without progress, a pipeline is not ready. The period is at least three flush intervals.
STILL_SECONDS = 20.0
_FLUSHES = 3
# After this many seconds without progress, the operator checks whether Postgres refuses to write.
_SUSPECT_SECONDS = 3.0
# If a pipeline's progress is unknown for this many seconds, the pipeline is not ready.
SILENT_SECONDS = 10.0
# If a partition's progress is unknown for this many seconds, the pipeline is not ready. When any partition
# advances, the period starts again. Kafka usually elects a new leader in less time.
UNTOLD_SECONDS = 12.0
# After this many seconds without counted events, the operator checks whether Kafka's controllers answer.
_IDLE_SECONDS = 5.0
# The longest acceptable number of seconds between two observations.
_BLIND_SECONDS = 25.0
_MAX_PARTITIONS = 8


@dataclass(frozen=True)
class Progress:
    """The progress of one partition. Any progress changes `read`."""

    lag: int
    read: tuple[int | None, int | None]


# The progress by partition, or the error that explains why the progress is unknown.
Look = Mapping[int, Progress] | TidemillError


@dataclass
class _Watched:
    """The state of a watched pipeline. Times are monotonic seconds.

    Attributes:
        still_since: start of the period in which events wait and no partition advances, or None.
        untold_since: start of the period in which a partition's progress is unknown and no other partition advances,
            or None.
    """

    place: tuple[str, str]
    patience: float
    told_at: float
    counted_at: float
    kafka: str = ""
    seen: dict[int, Progress] = field(default_factory=dict)
    still_since: float | None = None
    untold_since: float | None = None
    looked_at: float = 0.0
    error: TidemillError | None = None

    def take(self, look: Look, now: float, unled: Callable[[], float], refused: Callable[[], str]) -> None:
        if isinstance(look, TidemillError):
            if now - self.told_at >= SILENT_SECONDS:
                self.error = look
            return
        waiting, moved = _compared(self.seen, look)
        untold = sorted(self.seen.keys() - look.keys())
        self.still_since = None if moved or not waiting else self._since(self.still_since)
        self.untold_since = None if moved or not untold else self._since(self.untold_since)
        if not look or any(self.seen[part].read[0] != at.read[0] for part, at in look.items() if part in self.seen):
            self.counted_at = now
        self.seen, self.told_at, self.looked_at = {**self.seen, **look}, now, now
        silent = unled() if now - self.counted_at >= _IDLE_SECONDS else 0.0
        still = 0.0 if self.still_since is None else now - self.still_since
        if still and _is(self.error, Reason.NOT_MOVING):
            pass  # keep a NOT_MOVING error until a partition advances
        elif still >= self.patience:
            self.error = _still(waiting)
        elif still >= max(_SUSPECT_SECONDS, self.patience - STILL_SECONDS) and (why := refused()):
            self.error = _unstored(why)
        elif self.untold_since is not None and now - self.untold_since >= UNTOLD_SECONDS:
            self.error = self.error if _is(self.error, Reason.UNREACHABLE) else _untold(untold, self.kafka)
        elif silent >= SILENT_SECONDS and now - self.counted_at >= max(UNTOLD_SECONDS, self.patience - STILL_SECONDS):
            self.error = self.error if _is(self.error, Reason.UNREACHABLE) else _unled()
        else:
            self.error = None

    def _since(self, before: float | None) -> float:
        return self.looked_at if before is None else before


class ProgressWatch:
    """Detects pipelines that stop counting events. The class is thread-safe.

    Args:
        changed: function that is called with an error when a pipeline stops counting events, and with None when the
            pipeline counts again.
        unled: function that returns for how many seconds the controllers of a Kafka cluster have not answered.
        refused: function that returns why Postgres refuses to write, or an empty text.
        clock: function that returns monotonic seconds.
    """

    def __init__(
        self,
        changed: Callable[[Key, TidemillError | None], None] = lambda *_: None,
        *,
        unled: Callable[[str], float] = lambda _: 0.0,
        refused: Callable[[], str] = str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._changed, self._unled, self._refused, self._clock = changed, unled, refused, clock
        self._watched: dict[Key, _Watched] = {}
        self._lock = threading.Lock()

    def watch(self, key: Key, document: Mapping[str, Any], status: Mapping[str, Any]) -> None:
        """Watch the schema and topic that a pipeline's status names, unless the pipeline is suspended."""
        on = {condition["type"] for condition in status.get("conditions", ()) if condition["status"] == "True"}
        topics, schema = status.get("topics"), status.get("schema")
        if not topics or not schema or "Suspended" in on:
            self.forget(key)
            return
        kafka = (topics[0].get("kafka") or {}).get("bootstrapServers", "")
        place, patience = (schema, read_topics(key, topics)[0]), max(STILL_SECONDS, _FLUSHES * _flush_seconds(document))
        with self._lock:
            watched = self._watched.get(key)
            if watched is None or watched.place != place:
                self._watched[key] = _Watched(place, patience, self._clock(), self._clock(), kafka)
            else:
                watched.patience = patience

    def forget(self, key: Key) -> None:
        """Stop watching a pipeline."""
        with self._lock:
            self._watched.pop(key, None)

    def error(self, key: Key) -> TidemillError | None:
        """Return an error if the pipeline has stopped counting events or its progress is unknown."""
        with self._lock:
            watched = self._watched.get(key)
            if watched is None or watched.error is not None or self._clock() - watched.told_at < _BLIND_SECONDS:
                return watched.error if watched else None
        text = "it is unknown whether events are counted: Postgres and Kafka do not answer in time"
        return TidemillError(Reason.UNREACHABLE, text)

    def errors(self) -> dict[Key, str]:
        """Return the errors of all pipelines that do not count events."""
        with self._lock:
            return {key: str(watched.error) for key, watched in self._watched.items() if watched.error}

    def take(self, key: Key, schema: str, topic: str, look: Look) -> None:
        """Update a pipeline's state with an observation."""
        with self._lock:
            watched = self._watched.get(key)
            if watched is None or watched.place != (schema, topic):
                return
            before = watched.error
            # A pipeline's login for its own Kafka cluster may lack the permission to query the controllers.
            unled = (lambda: 0.0) if watched.kafka else lambda: self._unled(topic)
            watched.take(look, self._clock(), unled, self._refused)
            error = watched.error
        if (before is None) != (error is None):
            log.info("%s: %s", key, f"not ready: {error}" if error else "events are counted again")
            self._changed(key, error)


def _flush_seconds(document: Mapping[str, Any]) -> float:
    try:
        return parse_ms(document["spec"]["processor"]["flushInterval"]) / 1000
    except (KeyError, TypeError, ValueError):
        return 0.0


def _compared(before: Mapping[int, Progress], now: Mapping[int, Progress]) -> tuple[list[int], bool]:
    """Return the partitions with waiting events and without progress.

    The second value is True if any partition advanced.
    """
    waiting = [
        partition
        for partition, at in now.items()
        if at.lag and partition in before and before[partition].lag and before[partition].read == at.read
    ]
    return sorted(waiting), any(
        partition in before and before[partition].read != at.read for partition, at in now.items()
    )


def _is(error: TidemillError | None, reason: Reason) -> bool:
    return error is not None and error.reason == reason


def _named(partitions: list[int]) -> str:
    return ", ".join(map(str, partitions[:_MAX_PARTITIONS])) + (", …" if len(partitions) > _MAX_PARTITIONS else "")


def _untold(partitions: list[int], kafka: str) -> TidemillError:
    where, brokers = (f" at {kafka}", f"the brokers at {kafka}") if kafka else ("", "Kafka's brokers")
    return TidemillError(
        Reason.UNREACHABLE,
        f"leaders of partitions {_named(partitions)} do not answer{where}, and no event of other partitions is counted",
        f"check that {brokers} run",
    )


def _unled() -> TidemillError:
    return TidemillError(
        Reason.UNREACHABLE,
        "Kafka's controllers do not answer, and no event is counted: brokers possibly refuse events",
        "check that a majority of the controllers runs",
    )


def _unstored(why: str) -> TidemillError:
    return TidemillError(
        Reason.NOT_MOVING,
        f"events wait in the topic and none is counted, because Postgres refuses to write ({why})",
        "give Postgres more disk space, or check why it is a standby",
    )


def _still(partitions: list[int]) -> TidemillError:
    return TidemillError(
        Reason.NOT_MOVING,
        f"events wait in the topic (partitions {_named(partitions)}) and none is counted",
        "check the processors' pods; a pod's /health names what the processor waits for",
    )
