"""Sends events through ingest and directly to Kafka, and records which events were acknowledged."""

from __future__ import annotations

import json
import threading
import time
from typing import Any

import httpx
from confluent_kafka import KafkaError, Message, Producer

BASE_MS = 1_700_000_000_000 // 60_000 * 60_000
# Event time runs faster than the clock by this factor, so that a run has several windows.
_PACE = 10
_BATCH, _PIECE = 100, 1_000
# Every n-th event that is sent to ingest is invalid.
_POISON_EVERY = 97
_ANSWER_SECONDS = 40.0
# With this limit and _PACE, the oldest unacknowledged event is within `maxDisorder`.
_DELIVERY_SECONDS = 240


class Acknowledged:
    """The ids of acknowledged events: even ids were sent through ingest, odd ids directly to Kafka.

    Attributes:
        sent: The number of sent events.
        count: The number of acknowledged events that can be counted.
        poisoned: The number of acknowledged events that cannot be counted.
    """

    def __init__(self) -> None:
        self._marks = bytearray()
        self._lock = threading.Lock()
        self.sent = 0
        self.count = 0
        self.poisoned = 0

    def add(self, number: int) -> None:
        """Record an acknowledged event."""
        with self._lock:
            if number >= len(self._marks):
                self._marks.extend(bytes(number - len(self._marks) + 1_000_000))
            self.count += not self._marks[number]
            self._marks[number] = 1

    def marks(self) -> bytes:
        """Return an array with 1 at the index of each acknowledged id."""
        with self._lock:
            return bytes(self._marks)


def event_bytes(number: int, began: float) -> bytes:
    """Return a valid event."""
    at = BASE_MS + int((time.monotonic() - began) * 1000) * _PACE
    return b'{"id":%d,"k":"k%d","ts":%d}' % (number, number % 7, at)


class IngestSender:
    """Posts each batch to ingest once, at a constant rate."""

    def __init__(self, url: str, pipeline: str, acknowledged: Acknowledged, *, rate: float, began: float) -> None:
        self._url = f"{url}/v1/pipelines/{pipeline}/events"
        self._acknowledged, self._began = acknowledged, began
        self._pause = _BATCH / rate
        self._next = 0
        self._posting = False
        self._wanted, self._ended = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="through-ingest", daemon=True)
        self._thread.start()

    def flow(self, on: bool) -> None:
        """Start or pause sending."""
        (self._wanted.set if on else self._wanted.clear)()

    @property
    def idle(self) -> bool:
        """Whether no request is open, and none is due."""
        return not (self._posting or self._wanted.is_set())

    def close(self) -> None:
        """Stop sending."""
        self._ended.set()
        self._wanted.set()
        self._thread.join(_ANSWER_SECONDS + 5)

    def _run(self) -> None:
        with httpx.Client(timeout=_ANSWER_SECONDS, trust_env=False) as client:
            while self._wanted.wait() and not self._ended.is_set():
                begun = time.monotonic()
                self._posting = True
                if self._wanted.is_set():
                    self._post(client)
                self._posting = False
                self._ended.wait(max(0.0, self._pause - (time.monotonic() - begun)))

    def _post(self, client: httpx.Client) -> None:
        numbers = range(self._next, self._next + 2 * _BATCH, 2)
        self._next += 2 * _BATCH
        events = [self._event(number) for number in numbers]
        self._acknowledged.sent += len(events)
        try:
            answer = client.post(
                self._url,
                content=b"[" + b",".join(events) + b"]",
                params={"results": "all"},
                headers={"content-type": "application/json"},
            )
            results: list[dict[str, Any]] = answer.json()["results"] if answer.status_code in (200, 207) else []
        except (httpx.TransportError, ValueError):
            return
        for row in results:
            if row["status"] == "accepted":
                self._acknowledged.add(numbers[row["index"]])
            self._acknowledged.poisoned += row["status"] == "quarantined"

    def _event(self, number: int) -> bytes:
        if number // 2 % _POISON_EVERY == _POISON_EVERY - 1:
            return json.dumps({"id": f"?{number}", "k": "k", "ts": BASE_MS}).encode()
        return event_bytes(number, self._began)


class BulkSender:
    """Writes records directly to Kafka at a constant rate, and retries records that Kafka does not accept."""

    def __init__(self, brokers: str, topic: str, acknowledged: Acknowledged, *, began: float) -> None:
        self._topic, self._acknowledged, self._began = topic, acknowledged, began
        self._next = 1
        self._remaining = 0
        self._rate = 0.0
        self._ended = threading.Event()
        self._settings = {
            "bootstrap.servers": brokers,
            "enable.idempotence": True,
            "compression.type": "lz4",
            "linger.ms": 50,
            "delivery.timeout.ms": _DELIVERY_SECONDS * 1000,
            "queue.buffering.max.messages": 2_000_000,
            "log_level": 0,
        }
        self._producer = Producer(self._settings)
        self._thread = threading.Thread(target=self._run, name="bulk", daemon=True)
        self._thread.start()

    def begin(self, events: int, seconds: float) -> None:
        """Write more records, evenly over some seconds."""
        self._rate = max(1.0, events / seconds)
        self._remaining += events

    def renew(self) -> None:
        """Replace the producer after the topic was created again. The producer must have no open records.

        librdkafka ignores leaders whose epochs are lower than the known epochs. The epochs of a new topic begin with 0.
        """
        self._producer = Producer(self._settings)

    @property
    def idle(self) -> bool:
        """Whether all records are acknowledged."""
        return self._remaining == 0 and len(self._producer) == 0

    def close(self) -> None:
        """Stop writing."""
        self._ended.set()
        self._thread.join(10)
        self._producer.purge()

    def _run(self) -> None:
        due = time.monotonic()
        while not self._ended.is_set():
            self._producer.poll(0)
            if not self._remaining:
                due = time.monotonic()
                self._producer.poll(0.1)
                continue
            if (wait := due - time.monotonic()) > 0:
                self._producer.poll(wait)
                continue
            count = min(_PIECE, self._remaining)
            due = max(due + count / self._rate, time.monotonic() - 1.0)
            self._write(count)

    def _write(self, count: int) -> None:
        for _ in range(count):
            value = event_bytes(self._next, self._began)
            try:
                self._producer.produce(self._topic, value, key=value[-24:-20], on_delivery=self._delivered)
            except BufferError:
                self._producer.poll(0.2)
                return
            self._next += 2
            self._remaining -= 1
            self._acknowledged.sent += 1

    def _delivered(self, error: KafkaError | None, message: Message) -> None:
        value = message.value()
        if error is None and value is not None:
            self._acknowledged.add(int(value[6 : value.index(b",")]))
