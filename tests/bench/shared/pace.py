"""Events at a steady rate from a process of its own, event time being the clock's; and when Kafka acknowledged them."""

from __future__ import annotations

import multiprocessing
import time
from dataclasses import dataclass
from functools import partial
from multiprocessing.synchronize import Event
from typing import Any

import numpy as np
import polars as pl
from confluent_kafka import Producer
from shared.job import shut

TICK_SECONDS = 0.002
_SLOTS = 100_000
"""Different events; they come again in the same order."""


@dataclass(frozen=True)
class Sample:
    """An event whose way was watched. Times in seconds of `time.monotonic()`, which all processes share."""

    partition: int
    offset: int
    produced: float
    acknowledged: float


@dataclass(frozen=True)
class Paced:
    """What was written.

    Attributes:
        events: `ts`, `page`, `v`.
        samples: of acknowledged events.
        seconds: how long it took.
    """

    events: pl.DataFrame
    samples: list[Sample]
    seconds: float

    @property
    def rate(self) -> float:
        """Events a second that were reached."""
        return self.events.height / self.seconds


class Pace:
    """A running generator.

    Args:
        brokers: of the cluster.
        topic: where to.
        rate: events a second.
        seconds: at most; `stop` ends it before.
        keys: number of pages.
        every: every so many events one is a sample.
    """

    def __init__(
        self, brokers: str, topic: str, *, rate: int, seconds: float, keys: int, every: int, partitions: int = 4
    ) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._stop, self._begun = spawn.Event(), spawn.Event()
        self._found: Any = spawn.Queue()
        arguments = (brokers, topic, rate, seconds, keys, every, partitions, self._stop, self._begun, self._found)
        self._process = spawn.Process(target=_write, args=arguments, daemon=True)
        self._process.start()
        if not self._begun.wait(60):
            raise TimeoutError("the generator did not start")

    def stop(self) -> None:
        """Write no more than what shuts the windows."""
        self._stop.set()

    def finished(self) -> bool:
        """Whether the result is there."""
        return not self._found.empty()

    def result(self) -> Paced:
        """What was written, once it is all acknowledged."""
        found = self._found.get(timeout=600)
        self._process.join()
        assert isinstance(found, Paced)
        return found


def _write(
    brokers: str, topic: str, rate: int, seconds: float, keys: int, every: int, partitions: int, stop: Event,
    begun: Event, found: Any,
) -> None:  # fmt: skip
    random = np.random.default_rng(keys)
    pages = [f"/p{key}" for key in random.integers(0, keys, _SLOTS)]
    values = (1 + 400 * random.random(_SLOTS) * random.random(_SLOTS)).round(3)
    tails = [
        f', "page": "{page}", "user_id": "u{n}", "latency_ms": {value}, "country": "DE"}}'.encode()
        for n, (page, value) in enumerate(zip(pages, values.tolist(), strict=True))
    ]
    producer = Producer({
        "bootstrap.servers": brokers, "linger.ms": 5, "acks": "all", "partitioner": "murmur2_random",
        "queue.buffering.max.messages": 1_000_000,
    })  # fmt: skip
    samples: list[Sample] = []

    def note(produced: float, error: Any, message: Any) -> None:
        assert error is None, error
        # The client's own clock of the acknowledgement: this callback may run later.
        samples.append(Sample(message.partition(), message.offset(), produced, produced + message.latency()))

    producer.list_topics(topic, timeout=10)
    begun.set()
    started, written = time.monotonic(), 0
    times: list[tuple[int, int]] = []
    while (elapsed := time.monotonic() - started) < seconds and not stop.is_set():
        ts, due = time.time_ns() // 1_000_000, int(elapsed * rate)
        head = b'{"ts": %d' % ts
        for n in range(written, due):
            slot = n % _SLOTS
            if n % every:
                producer.produce(topic, head + tails[slot], pages[slot])
            else:
                told = partial(note, time.monotonic())
                producer.produce(topic, head + tails[slot], pages[slot], on_delivery=told)
        times.append((ts, due - written))
        written = due
        producer.poll(0)
        time.sleep(TICK_SECONDS)
    took = time.monotonic() - started
    shut(producer, topic, partitions, time.time_ns() // 1_000_000 + 600_000)
    slots = np.arange(written) % _SLOTS
    ts_of = np.repeat([ts for ts, _ in times], [count for _, count in times])
    events = pl.DataFrame({"ts": ts_of, "page": pl.Series(pages).gather(slots), "v": values[slots]})
    found.put(Paced(events, samples, took))
