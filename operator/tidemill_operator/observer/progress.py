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
from tidemill_operator.observer.stages import consumed_topics

log = logging.getLogger(__name__)
# After this many seconds without progress, a pipeline is not ready. The period is at least three flush intervals.
STUCK_SECONDS = 20.0
_FLUSHES = 3
# After this many seconds without progress, the operator checks whether Postgres refuses to write.
_SUSPECT_SECONDS = 3.0
# If a pipeline's progress is unknown for this many seconds, the pipeline is not ready.
SILENT_SECONDS = 10.0
# If a partition's progress is unknown for this many seconds, the pipeline is not ready. When any partition
# advances, the period starts again. Kafka usually elects a new leader in less time.
PARTITION_UNKNOWN_SECONDS = 12.0
# After this many seconds without counted events, the operator checks whether Kafka's controllers answer.
_IDLE_SECONDS = 5.0
# The longest acceptable number of seconds between two observations.
_MAX_GAP_SECONDS = 25.0
_MAX_PARTITIONS = 8


@dataclass(frozen=True)
class Progress:
    """The progress of one partition.

    Attributes:
        position: the stored position, and the time in ms at which an idle partition was confirmed. Any progress changes
            the pair.
    """

    lag: int
    position: tuple[int | None, int | None]


# The progress by partition, or the error that explains why the progress is unknown.
ProgressResult = Mapping[int, Progress] | TidemillError


@dataclass
class _WatchedPipeline:
    """The state of a watched pipeline. Times are monotonic seconds.

    Attributes:
        stuck_since: start of the period in which events wait and no partition advances, or None.
        unknown_since: start of the period in which a partition's progress is unknown and no other partition advances,
            or None.
    """

    place: tuple[str, str]
    patience: float
    known_at: float
    counted_at: float
    kafka: str = ""
    progress: dict[int, Progress] = field(default_factory=dict)
    stuck_since: float | None = None
    unknown_since: float | None = None
    updated_at: float = 0.0
    error: TidemillError | None = None

    def update(
        self,
        result: ProgressResult,
        now: float,
        controller_silence: Callable[[], float],
        write_refusal: Callable[[], str],
    ) -> None:
        if isinstance(result, TidemillError):
            if now - self.known_at >= SILENT_SECONDS:
                self.error = result
            return
        waiting, moved = _compare_progress(self.progress, result)
        unknown = sorted(self.progress.keys() - result.keys())
        self.stuck_since = None if moved or not waiting else self._since(self.stuck_since)
        self.unknown_since = None if moved or not unknown else self._since(self.unknown_since)
        known = self.progress
        if not result or any(known[part].position[0] != at.position[0] for part, at in result.items() if part in known):
            self.counted_at = now
        self.progress, self.known_at, self.updated_at = {**self.progress, **result}, now, now
        silent_seconds = controller_silence() if now - self.counted_at >= _IDLE_SECONDS else 0.0
        stuck_seconds = 0.0 if self.stuck_since is None else now - self.stuck_since
        if stuck_seconds and _has_reason(self.error, Reason.NOT_MOVING):
            pass  # keep a NOT_MOVING error until a partition advances
        elif stuck_seconds >= self.patience:
            self.error = _stuck_error(waiting)
        elif stuck_seconds >= max(_SUSPECT_SECONDS, self.patience - STUCK_SECONDS) and (why := write_refusal()):
            self.error = _writes_error(why)
        elif self.unknown_since is not None and now - self.unknown_since >= PARTITION_UNKNOWN_SECONDS:
            if not _has_reason(self.error, Reason.UNREACHABLE):
                self.error = _leaders_error(unknown, self.kafka)
        elif silent_seconds >= SILENT_SECONDS and now - self.counted_at >= max(
            PARTITION_UNKNOWN_SECONDS, self.patience - STUCK_SECONDS
        ):
            if not _has_reason(self.error, Reason.UNREACHABLE):
                self.error = _controllers_error()
        else:
            self.error = None

    def _since(self, before: float | None) -> float:
        return self.updated_at if before is None else before


class ProgressWatch:
    """Detects pipelines that stop counting events. The class is thread-safe.

    Args:
        changed: function that is called with an error when a pipeline stops counting events, and with None when the
            pipeline counts again.
        controller_silence: function that returns for how many seconds Kafka's controllers have not answered.
        write_refusal: function that returns why Postgres refuses to write, or an empty text.
        clock: function that returns monotonic seconds.
    """

    def __init__(
        self,
        changed: Callable[[Key, TidemillError | None], None] = lambda *_: None,
        *,
        controller_silence: Callable[[str], float] = lambda _: 0.0,
        write_refusal: Callable[[], str] = str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._changed, self._clock = changed, clock
        self._controller_silence, self._write_refusal = controller_silence, write_refusal
        self._watched: dict[Key, _WatchedPipeline] = {}
        self._lock = threading.Lock()

    def watch(self, key: Key, document: Mapping[str, Any], status: Mapping[str, Any]) -> None:
        """Watch the schema and topic that a pipeline's status names, unless the pipeline is suspended."""
        suspended = any(c["type"] == "Suspended" and c["status"] == "True" for c in status.get("conditions", ()))
        topics, schema = status.get("topics"), status.get("schema")
        if not topics or not schema or suspended:
            self.forget(key)
            return
        kafka = (topics[0].get("kafka") or {}).get("bootstrapServers", "")
        place = (schema, consumed_topics(key, topics)[0])
        patience = max(STUCK_SECONDS, _FLUSHES * _flush_seconds(document))
        with self._lock:
            watched = self._watched.get(key)
            if watched is None or watched.place != place:
                self._watched[key] = _WatchedPipeline(place, patience, self._clock(), self._clock(), kafka)
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
            if watched is None or watched.error is not None or self._clock() - watched.known_at < _MAX_GAP_SECONDS:
                return watched.error if watched else None
        text = "it is unknown whether events are counted: Postgres and Kafka do not answer in time"
        return TidemillError(Reason.UNREACHABLE, text)

    def errors(self) -> dict[Key, str]:
        """Return the errors of all pipelines that do not count events."""
        with self._lock:
            return {key: str(watched.error) for key, watched in self._watched.items() if watched.error}

    def update(self, key: Key, schema: str, topic: str, result: ProgressResult) -> None:
        """Update a pipeline's state with an observation."""
        with self._lock:
            watched = self._watched.get(key)
            if watched is None or watched.place != (schema, topic):
                return
            before = watched.error
            # A pipeline's login for its own Kafka cluster may lack the permission to query the controllers.
            controller_silence = (lambda: 0.0) if watched.kafka else lambda: self._controller_silence(topic)
            watched.update(result, self._clock(), controller_silence, self._write_refusal)
            error = watched.error
        if (before is None) != (error is None):
            log.info("%s: %s", key, f"not ready: {error}" if error else "events are counted again")
            self._changed(key, error)


def _flush_seconds(document: Mapping[str, Any]) -> float:
    try:
        return parse_ms(document["spec"]["processor"]["flushInterval"]) / 1000
    except (KeyError, TypeError, ValueError):
        return 0.0


def _compare_progress(before: Mapping[int, Progress], after: Mapping[int, Progress]) -> tuple[list[int], bool]:
    """Return the partitions with waiting events and without progress.

    The second value is True if any partition advanced.
    """
    waiting = [
        partition
        for partition, at in after.items()
        if at.lag and partition in before and before[partition].lag and before[partition].position == at.position
    ]
    return sorted(waiting), any(
        partition in before and before[partition].position != at.position for partition, at in after.items()
    )


def _has_reason(error: TidemillError | None, reason: Reason) -> bool:
    return error is not None and error.reason == reason


def _partition_list(partitions: list[int]) -> str:
    return ", ".join(map(str, partitions[:_MAX_PARTITIONS])) + (", …" if len(partitions) > _MAX_PARTITIONS else "")


def _leaders_error(partitions: list[int], kafka: str) -> TidemillError:
    where, brokers = (f" at {kafka}", f"the brokers at {kafka}") if kafka else ("", "Kafka's brokers")
    numbers = _partition_list(partitions)
    return TidemillError(
        Reason.UNREACHABLE,
        f"leaders of partitions {numbers} do not answer{where}, and no event of other partitions is counted",
        f"check that {brokers} run",
    )


def _controllers_error() -> TidemillError:
    return TidemillError(
        Reason.UNREACHABLE,
        "Kafka's controllers do not answer, and no event is counted: brokers possibly refuse events",
        "check that a majority of the controllers runs",
    )


def _writes_error(why: str) -> TidemillError:
    return TidemillError(
        Reason.NOT_MOVING,
        f"events wait in the topic and none is counted, because Postgres refuses to write ({why})",
        "give Postgres more disk space, or check why it is a standby",
    )


def _stuck_error(partitions: list[int]) -> TidemillError:
    return TidemillError(
        Reason.NOT_MOVING,
        f"events wait in the topic (partitions {_partition_list(partitions)}) and none is counted",
        "check the processors' pods; a pod's /health names what the processor waits for",
    )
