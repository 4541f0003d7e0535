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
from tidemill_ingest.kafka.producers import ProducerHolder
from tidemill_ingest.records import TRUNCATED_BYTES

log = logging.getLogger(__name__)

_RETRY_SECONDS = 1.0
_STUCK_SECONDS, _REPLACE_AGAIN_SECONDS = 30.0, 60.0
"""The producer is replaced if a message waits longer than _STUCK_SECONDS, at most once per _RENEW_SECONDS."""
_FIRST_PROBE_SECONDS, _PROBE_SECONDS, _PROBE_TIMEOUT_SECONDS = 0.2, 2.0, 3.0
_TOO_LARGE = (KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.INVALID_MSG_SIZE, KafkaError.RECORD_LIST_TOO_LARGE)


@dataclass(eq=False)
class Message:
    """A message on its way to Kafka."""

    value: bytes
    key: bytes | None
    headers: Headers
    on_written: Callable[[], None]
    shrunk: bool = False

    def shrink(self) -> None:
        """Truncate a message that is too large, and mark the message as an invalid event."""
        invalid_event = InvalidEvent(Reason.TOO_LARGE, None, f"a message of {len(self.value)} bytes")
        self.shrunk, self.value = True, QUARANTINE_PREFIX + self.value[:TRUNCATED_BYTES]
        self.headers = [*self.headers, *quarantine.headers(invalid_event)]


class KafkaWriter:
    """Writes messages to one topic. All calls except `dependency` must come from one thread."""

    def __init__(self, topic: str, settings: dict[str, object]) -> None:
        self._topic, self._holder = topic, ProducerHolder(settings)
        self._retries: deque[tuple[float, Message]] = deque()
        self._start_times: dict[Message, float] = {}
        self._replaced_at = time.monotonic()
        self._oldest_wait_seconds = 0.0
        self.error = ""
        self._probe = _Probe(self._holder, topic)

    def start(self) -> None:
        """Start to probe whether Kafka answers."""
        self._probe.start()

    @property
    def in_flight(self) -> int:
        """The number of messages that are not in Kafka yet."""
        return len(self._start_times)

    def write(self, message: Message) -> None:
        """Send a message to Kafka. `poll` calls `message.on_written` after Kafka has acknowledged the record."""
        if len(message.value) > MAX_EVENT_BYTES:
            message.shrink()
        self._start_times[message] = time.monotonic()
        self._send(message)

    def poll(self) -> None:
        """Call the callbacks of written messages, and resend messages that Kafka has refused."""
        self._holder.poll()
        now = time.monotonic()
        while self._retries and self._retries[0][0] <= now:
            self._send(self._retries.popleft()[1])
        # If messages wait too long, replace the producer. The producer's metadata of the topic may be outdated.
        self._oldest_wait_seconds = now - next(iter(self._start_times.values()), now)
        stuck = self._oldest_wait_seconds > _STUCK_SECONDS and now - self._replaced_at > _REPLACE_AGAIN_SECONDS
        if stuck and not self._probe.error:
            log.warning(
                "messages have waited for %.0f s, although Kafka answers: the producer is replaced",
                self._oldest_wait_seconds,
            )
            self._replaced_at = now
            self._holder.replace_and_purge()

    def dependency(self) -> Dependency:
        """Return the entry of Kafka in /health."""
        detail = self._probe.error or self.error
        if not detail and self._oldest_wait_seconds > _STUCK_SECONDS:
            detail = f"messages have waited for {self._oldest_wait_seconds:.0f} s to be acknowledged"
        return Dependency("kafka", not detail, True, detail)

    @property
    def has_answered(self) -> bool:
        """Whether Kafka has ever answered."""
        return self._probe.has_answered

    def close(self) -> None:
        """Stop probing."""
        self._probe.stop()

    def _send(self, message: Message) -> None:
        def on_delivery(error: KafkaError | None, _record: object) -> None:
            if error is None:
                self.error = ""
                del self._start_times[message]
                message.on_written()
            else:
                self._schedule_retry(message, error)

        try:
            self._holder.producer.produce(
                self._topic, message.value, message.key, on_delivery=on_delivery, headers=message.headers
            )
        except BufferError:
            self._retries.append((time.monotonic() + _RETRY_SECONDS, message))
        except KafkaException as error:
            self._holder.on_error(error.args[0])
            self._schedule_retry(message, error.args[0])

    def _schedule_retry(self, message: Message, error: KafkaError) -> None:
        if error.code() in _TOO_LARGE and not message.shrunk:
            message.shrink()
        elif error.name() != "_PURGE_QUEUE":
            if not self.error:
                log.warning("Kafka refuses messages, which are sent again: %s", error.str())
            self.error = error.str()
        self._retries.append((time.monotonic() + _RETRY_SECONDS, message))


class _Probe(threading.Thread):
    def __init__(self, holder: ProducerHolder, topic: str) -> None:
        super().__init__(name="kafka-probe", daemon=True)
        self._holder, self._topic = holder, topic
        self._ended = threading.Event()
        self.error, self.has_answered = "not asked yet", False

    def run(self) -> None:
        while not self._ended.wait(_PROBE_SECONDS if self.has_answered else _FIRST_PROBE_SECONDS):
            try:
                metadata = self._holder.producer.list_topics(self._topic, timeout=_PROBE_TIMEOUT_SECONDS)
                topic_error = metadata.topics[self._topic].error
                self.error = topic_error.str() if topic_error is not None else ""
                self.has_answered = True
            except KafkaException as error:
                self.error = str(error.args[0].str())

    def stop(self) -> None:
        self._ended.set()
