"""Writes messages to Kafka, and retries a message until Kafka has acknowledged it."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from confluent_kafka import KafkaError, KafkaException

from tidemill_chassis.health import Dependency
from tidemill_contract.events import quarantine
from tidemill_contract.events.decoder import QUARANTINE_PREFIX, InvalidEvent, Reason
from tidemill_contract.events.fields import MAX_EVENT_BYTES
from tidemill_contract.events.quarantine import Headers
from tidemill_ingest.kafka.producers import Line
from tidemill_ingest.records import KEPT_BYTES

log = logging.getLogger(__name__)

_AGAIN_SECONDS = 1.0
_STUCK_SECONDS, _RENEW_SECONDS = 30.0, 60.0
"""The producer is replaced if a message waits longer than _STUCK_SECONDS, at most once per _RENEW_SECONDS."""
_FIRST_PROBE_SECONDS, _PROBE_SECONDS, _ASK_SECONDS = 0.2, 2.0, 3.0
_TOO_LARGE = (KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.INVALID_MSG_SIZE, KafkaError.RECORD_LIST_TOO_LARGE)


@dataclass(eq=False)
class Message:
    """A message on its way to Kafka."""

    value: bytes
    key: bytes | None
    headers: Headers
    written: Callable[[], None]
    shrunk: bool = False

    def shrink(self) -> None:
        """Truncate a message that is too large, and mark the message as an invalid event."""
        verdict = InvalidEvent(Reason.TOO_LARGE, None, f"a message of {len(self.value)} bytes")
        self.shrunk, self.value = True, QUARANTINE_PREFIX + self.value[:KEPT_BYTES]
        self.headers = [*self.headers, *quarantine.headers(verdict)]


class Outlet:
    """Writes messages to one topic. All calls except `dependency` must come from one thread."""

    def __init__(self, topic: str, settings: dict[str, object]) -> None:
        self._topic, self._line = topic, Line(settings)
        self._waiting: deque[tuple[float, Message]] = deque()
        self._began: dict[Message, float] = {}
        self._renewed_at = time.monotonic()
        self._waited = 0.0
        self.error = ""
        self._probe = _Probe(self._line, topic)

    def start(self) -> None:
        """Start to probe whether Kafka answers."""
        self._probe.start()

    @property
    def in_flight(self) -> int:
        """The number of messages that are not in Kafka yet."""
        return len(self._began)

    def write(self, message: Message) -> None:
        """Send a message to Kafka. `poll` calls `message.written` after Kafka has acknowledged the record."""
        if len(message.value) > MAX_EVENT_BYTES:
            message.shrink()
        self._began[message] = time.monotonic()
        self._send(message)

    def poll(self) -> None:
        """Call the callbacks of written messages, and resend messages that Kafka has refused."""
        self._line.poll()
        now = time.monotonic()
        while self._waiting and self._waiting[0][0] <= now:
            self._send(self._waiting.popleft()[1])
        # If messages wait too long, replace the producer. The producer's metadata of the topic may be outdated.
        self._waited = now - next(iter(self._began.values()), now)
        stuck = self._waited > _STUCK_SECONDS and now - self._renewed_at > _RENEW_SECONDS
        if stuck and not self._probe.error:
            log.warning(
                "messages have waited for %.0f s, although Kafka answers: the producer is replaced", self._waited
            )
            self._renewed_at = now
            self._line.renew()

    def dependency(self) -> Dependency:
        """Return the entry of Kafka in /health."""
        detail = self._probe.error or self.error
        if not detail and self._waited > _STUCK_SECONDS:
            detail = f"messages have waited for {self._waited:.0f} s to be acknowledged"
        return Dependency("kafka", not detail, True, detail)

    @property
    def seen(self) -> bool:
        """Whether Kafka has ever answered."""
        return self._probe.seen

    def close(self) -> None:
        """Stop probing."""
        self._probe.stop()

    def _send(self, message: Message) -> None:
        def on_delivery(error: KafkaError | None, _record: object) -> None:
            if error is None:
                self.error = ""
                del self._began[message]
                message.written()
            else:
                self._refused(message, error)

        try:
            self._line.producer.produce(
                self._topic, message.value, message.key, on_delivery=on_delivery, headers=message.headers
            )
        except BufferError:
            self._waiting.append((time.monotonic() + _AGAIN_SECONDS, message))
        except KafkaException as error:
            self._line.on_error(error.args[0])
            self._refused(message, error.args[0])

    def _refused(self, message: Message, error: KafkaError) -> None:
        if error.code() in _TOO_LARGE and not message.shrunk:
            message.shrink()
        elif error.name() != "_PURGE_QUEUE":
            if not self.error:
                log.warning("Kafka refuses messages, which are sent again: %s", error.str())
            self.error = error.str()
        self._waiting.append((time.monotonic() + _AGAIN_SECONDS, message))


class _Probe(threading.Thread):
    def __init__(self, line: Line, topic: str) -> None:
        super().__init__(name="kafka-probe", daemon=True)
        self._line, self._topic = line, topic
        self._ended = threading.Event()
        self.error, self.seen = "not asked yet", False

    def run(self) -> None:
        while not self._ended.wait(_PROBE_SECONDS if self.seen else _FIRST_PROBE_SECONDS):
            try:
                topic_error = (
                    self._line.producer.list_topics(self._topic, timeout=_ASK_SECONDS).topics[self._topic].error
                )
                self.error = topic_error.str() if topic_error is not None else ""
                self.seen = True
            except KafkaException as error:
                self.error = str(error.args[0].str())

    def stop(self) -> None:
        self._ended.set()
