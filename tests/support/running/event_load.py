"""A load of costly events at a given rate, and the windows that must result from it."""

from __future__ import annotations

import json
import threading
import time
from typing import Any

from confluent_kafka import KafkaError, Message, Producer

from tidemill_operator.laptop.servers import Servers

BASE, MINUTE = 1_760_000_040_000, 60_000
PARTITIONS, CARRIERS, AIRPORTS = 12, 20, 50
WORDS = [f"error{number}" for number in range(32)]
# Almost none of the words occurs in the text, so a search for a word reads the whole text.
TEXT = " at orders.basket.Checkout.pay(Checkout.java:118) after 31 ms, card of the customer was asked again;" * 3


class Load:
    """A thread that sends events at a rate.

    Attributes:
        rate: events a second; it may change while the thread runs.
        sent: the number of events sent.
        acknowledged: the number of events that Kafka acknowledged.
        refused: the errors of events that Kafka refused.
    """

    def __init__(self, servers: Servers, topic: str) -> None:
        self.rate, self.sent, self.acknowledged = 0, 0, 0
        self.refused: list[str] = []
        self._topic = topic
        self._producer = Producer({
            "bootstrap.servers": servers.kafka, "acks": "all", "enable.idempotence": True, "linger.ms": 50,
            "queue.buffering.max.messages": 1_000_000,
        })  # fmt: skip
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    @staticmethod
    def event(number: int) -> dict[str, Any]:
        """Return the event of this number."""
        airport = number * 7 // CARRIERS % AIRPORTS
        return {
            "ts": BASE + number // 10,
            "carrier": f"c{number % CARRIERS}",
            "airport": f"a{airport}",
            "delay": number * 31 % 1009,
            "message": f"{TEXT}{WORDS[0].upper() if number % 11 == 0 else ''}",
        }

    def _count_delivery(self, error: KafkaError | None, _: Message) -> None:
        if error is None:
            self.acknowledged += 1
        else:
            self.refused.append(error.str())

    def _run(self) -> None:
        due = 0.0
        before = time.monotonic()
        while not self._stop.wait(0.05):
            now = time.monotonic()
            due, before = due + self.rate * (now - before), now
            self.send(int(due))
            due -= int(due)
            self._producer.poll(0)

    def send(self, number: int) -> None:
        """Send the next `number` events at once."""
        for _ in range(number):
            value = json.dumps(self.event(self.sent)).encode()
            self._producer.produce(
                self._topic, value, partition=self.sent * 5 % PARTITIONS, on_delivery=self._count_delivery
            )
            self.sent += 1

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        self.flush()

    def flush(self) -> None:
        assert self._producer.flush(60) == 0

    def expected(self, *groups: str) -> dict[tuple[Any, ...], tuple[int, ...]]:
        """Compute events, total, least, most and failed events of each group and window from the sent events."""
        rows: dict[tuple[Any, ...], list[int]] = {}
        for number in range(self.sent):
            event = self.event(number)
            delay = event["delay"]
            failed = WORDS[0].upper() in event["message"]
            row = rows.setdefault(
                (*(event[group] for group in groups), event["ts"] // MINUTE * MINUTE), [0, 0, delay, delay, 0]
            )
            row[:] = row[0] + 1, row[1] + delay, min(row[2], delay), max(row[3], delay), row[4] + failed
        return {group: tuple(row) for group, row in rows.items()}
