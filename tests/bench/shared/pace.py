"""A generator of events at a steady rate, in a separate process.

The event time of an event is the current time. The generator notes when Kafka acknowledges events.
"""

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
from shared.job import close_windows

TICK_SECONDS = 0.002
_SLOTS = 100_000
"""Number of different events. The generator repeats them in the same order."""


@dataclass(frozen=True)
class Sample:
    """A timed event. Times are seconds of `time.monotonic()`, which all processes share."""

    partition: int
    offset: int
    produced: float
    acknowledged: float


@dataclass(frozen=True)
class Paced:
    """The events that a generator wrote.

    Attributes:
        events: All events: `ts`, `page`, `v`.
        samples: The timed events.
        seconds: Duration of the generator's run.
    """

    events: pl.DataFrame
    samples: list[Sample]
    seconds: float

    @property
    def rate(self) -> float:
        """Events a second that the generator reached."""
        return self.events.height / self.seconds


class Pace:
    """A running generator.

    Args:
        brokers: Addresses of the brokers.
        topic: Topic to write to.
        rate: Events a second.
        seconds: Maximal duration. `stop` ends the generator earlier.
        keys: Number of pages.
        every: One in `every` events is timed.
        partitions: Number of the topic's partitions.
    """

    def __init__(
        self, brokers: str, topic: str, *, rate: int, seconds: float, keys: int, every: int, partitions: int = 4
    ) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._stop, self._begun = spawn.Event(), spawn.Event()
        self._results: Any = spawn.Queue()
        arguments = (brokers, topic, rate, seconds, keys, every, partitions, self._stop, self._begun, self._results)
        self._process = spawn.Process(target=_write, args=arguments, daemon=True)
        self._process.start()
        if not self._begun.wait(60):
            raise TimeoutError("the generator did not start")

    def stop(self) -> None:
        """Let the generator write the events that close the windows, and end."""
        self._stop.set()

    def finished(self) -> bool:
        """Return whether the generator has ended."""
        return not self._results.empty()

    def result(self) -> Paced:
        """Wait until all events are acknowledged, and return them."""
        result = self._results.get(timeout=600)
        self._process.join()
        assert isinstance(result, Paced)
        return result


def _write(
    brokers: str, topic: str, rate: int, seconds: float, keys: int, every: int, partitions: int, stop: Event,
    begun: Event, results: Any,
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
        # The client measures the acknowledgement's latency, because this callback may run later.
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
                on_delivery = partial(note, time.monotonic())
                producer.produce(topic, head + tails[slot], pages[slot], on_delivery=on_delivery)
        times.append((ts, due - written))
        written = due
        producer.poll(0)
        time.sleep(TICK_SECONDS)
    took = time.monotonic() - started
    close_windows(producer, topic, partitions, time.time_ns() // 1_000_000 + 600_000)
    slots = np.arange(written) % _SLOTS
    ts_of = np.repeat([ts for ts, _ in times], [count for _, count in times])
    events = pl.DataFrame({"ts": ts_of, "page": pl.Series(pages).gather(slots), "v": values[slots]})
    results.put(Paced(events, samples, took))
