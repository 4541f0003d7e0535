"""The job of all engines: count, sum, min and max of page views by page and window.

The module fills the topic and recomputes the expected windows in one batch. It compares them with the windows in
Postgres and with the results in Kafka.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import psycopg
from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic
from shared.support import NAMESPACE, await_condition

BASE = 1_763_900_000_000 // 86_400_000 * 86_400_000
FLUSH = "/flush"
"""The page of the events that close all windows. Comparisons leave this page out."""
_FUTURE_MS = 600_000
PRODUCER = {
    "linger.ms": 5, "batch.size": 262_144, "queue.buffering.max.messages": 500_000, "partitioner": "murmur2_random",
    "acks": "all",
}  # fmt: skip


@dataclass(frozen=True)
class Job:
    """A topic and the windows that engines compute from it.

    Attributes:
        events: Number of events. The events that close the windows, one a partition, are not included.
        keys: Number of pages. All pages are equally likely.
        partitions: Number of the topic's partitions.
        step_ms: Event time from one event to the next. Each event is up to 2 s late.
        window_ms: Size of the tumbling windows.
    """

    events: int
    keys: int
    partitions: int = 4
    step_ms: int = 5
    window_ms: int = 60_000

    @property
    def total(self) -> int:
        """Number of records in the topic."""
        return self.events + self.partitions

    @property
    def topic(self) -> str:
        """Name of the topic. Different jobs have different topics."""
        return f"{NAMESPACE}.job-{self.events}-{self.keys}-{self.partitions}-{self.step_ms}"


def pipeline_spec(
    topic: str, *, partitions: int = 4, window_ms: int = 60_000, disorder_ms: int = 2_000, grace_ms: int = 5_000,
    publish: bool = True, aggregations: int = 1, flush_interval: str | None = None, function: str | None = None,
    watching: str | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Return the job as the spec of a pipeline on an existing topic.

    Args:
        topic: The topic to read.
        partitions: Number of the topic's partitions.
        window_ms: Size of the tumbling windows.
        disorder_ms: `maxDisorder` of the pipeline.
        grace_ms: `grace` of the windows.
        publish: Whether the pipeline publishes closed windows.
        aggregations: Number of aggregations. The first is called `by_page`, and the others are copies of it.
        flush_interval: `flushInterval` of the processor, or None for the default.
        function: Function of an additional metric over `user_id`.
        watching: Type of a detector that judges the latency of each event by page.
    """
    metrics = [
        {"name": "n", "function": "count"},
        {"name": "total", "function": "sum", "field": "latency_ms"},
        {"name": "low", "function": "min", "field": "latency_ms"},
        {"name": "high", "function": "max", "field": "latency_ms"},
    ]
    if function is not None:
        metrics.append({"name": "users", "function": function, "field": "user_id"})
    window = {"type": "tumbling", "size": f"{window_ms}ms", "grace": f"{grace_ms}ms"}
    named = ["by_page", *(f"by_page_{n}" for n in range(2, aggregations + 1))]
    return {
        "results": {"publish": publish},
        "source": {
            "topic": {"name": topic, "managed": False, "partitions": partitions},
            "fields": [
                {"name": "ts", "type": "timestamp", "required": True},
                {"name": "page", "type": "string", "required": True},
                {"name": "user_id", "type": "string"},
                {"name": "latency_ms", "type": "number"},
                {"name": "country", "type": "string"},
            ],
            "eventTime": {"field": "ts", "maxDisorder": f"{disorder_ms}ms"},
        },
        "aggregations": [
            {"name": name, "groupBy": ["page"], "window": window, "metrics": metrics} for name in named
        ],
        **({"processor": {"flushInterval": flush_interval}} if flush_interval else {}),
        "anomalies": [
            {"name": "slow", "field": "latency_ms", "groupBy": ["page"], "detector": {"type": kind}}
            for kind in [watching] if kind
        ],
    }  # fmt: skip


def make_topic(brokers: str, topic: str, partitions: int) -> None:
    """Create a topic whose records carry the broker's time, and wait for its leaders."""
    settings = {"message.timestamp.type": "LogAppendTime", "retention.ms": "-1"}
    kafka = AdminClient({"bootstrap.servers": brokers, "log_level": 3})
    kafka.create_topics([NewTopic(topic, partitions, 1, config=settings)])[topic].result(30)

    def has_leaders() -> bool:
        try:
            return len(end_offsets(brokers, topic)) == partitions
        except KafkaException:
            return False

    await_condition(has_leaders, seconds=30, interval=0.1)


def drop_topics(brokers: str, chosen: Callable[[str], bool]) -> None:
    """Delete the topics whose names `chosen` accepts."""
    kafka = AdminClient({"bootstrap.servers": brokers, "log_level": 3})
    names = [name for name in kafka.list_topics(timeout=10).topics if chosen(name)]
    if names:
        for future in kafka.delete_topics(names).values():
            future.result(30)


def drawn(job: Job) -> pl.DataFrame:
    """Return the job's events in the order of the topic: `ts`, `page`, `v`. Every call returns the same events."""
    random = np.random.default_rng(job.events + job.keys)
    late = random.integers(0, 2_000, job.events)
    pages = random.integers(0, job.keys, job.events)
    values = (1 + 400 * random.random(job.events) * random.random(job.events)).round(3)
    ts = BASE + np.arange(job.events) * job.step_ms - late
    return pl.DataFrame({"ts": ts, "page": pages, "v": values}).with_columns(
        page=pl.concat_str(pl.lit("/p"), pl.col("page"))
    )


def fill(brokers: str, job: Job) -> None:
    """Fill the job's empty topic. The last event of each partition closes all windows.

    Raises:
        RuntimeError: The topic has another number of records afterwards.
    """
    producer = Producer({"bootstrap.servers": brokers, **PRODUCER})
    for frame in drawn(job).iter_slices(50_000):
        texts = frame.select(
            "page",
            text=pl.concat_str(
                pl.lit('{"ts": '), "ts", pl.lit(', "page": "'), "page", pl.lit('", "user_id": "u'),
                pl.col("ts") % 99_991, pl.lit('", "latency_ms": '), "v", pl.lit(', "country": "DE"}'),
            ),
        )  # fmt: skip
        for page, text in texts.iter_rows():
            while True:
                try:
                    producer.produce(job.topic, text, key=page)
                    break
                except BufferError:
                    producer.poll(0.05)
        producer.poll(0)
    close_windows(
        producer, job.topic, job.partitions, BASE + job.events * job.step_ms + max(_FUTURE_MS, 2 * job.window_ms)
    )
    if (records := sum(end_offsets(brokers, job.topic).values())) != job.total:
        raise RuntimeError(f"{job.topic} has {records} records, not {job.total}")


def close_windows(producer: Producer, topic: str, partitions: int, ts: int) -> None:
    """Write an event with a late event time to each partition, and flush the producer.

    Raises:
        RuntimeError: Some records were not acknowledged.
    """
    for partition in range(partitions):
        event = {"ts": ts, "page": FLUSH, "user_id": "u0", "latency_ms": 1.0, "country": "DE"}
        producer.produce(topic, json.dumps(event), key=FLUSH, partition=partition)
    if left := producer.flush(60):
        raise RuntimeError(f"{left} records of {topic} were not acknowledged")


def end_offsets(brokers: str, topic: str) -> dict[int, int]:
    """Return the end offset of each partition of a topic."""
    consumer = Consumer({"bootstrap.servers": brokers, "group.id": "bench-ends", "log_level": 3})
    try:
        partitions = consumer.list_topics(topic, timeout=10).topics[topic].partitions
        return {p: consumer.get_watermark_offsets(TopicPartition(topic, p), timeout=10)[1] for p in partitions}
    finally:
        consumer.close()


def recomputed(events: pl.DataFrame, window_ms: int) -> pl.DataFrame:
    """Return the windows of events (`ts`, `page`, `v`): `page`, `start` (epoch ms), `n`, `total`, `low`, `high`."""
    value = pl.col("v")
    return events.group_by("page", start=pl.col("ts") // window_ms * window_ms).agg(
        n=pl.len().cast(pl.Int64), total=value.sum(), low=value.min(), high=value.max()
    )


@dataclass(frozen=True)
class Comparison:
    """The difference between expected and actual windows, in numbers of windows."""

    expected: int
    missing: int
    wrong: int
    unexpected: int
    repeated: int

    @property
    def exact(self) -> bool:
        """Whether each expected window exists once with the right values, and no other window exists."""
        return not (self.missing or self.wrong or self.unexpected or self.repeated)


_KEYS = ["page", "start"]


def right(expected: pl.DataFrame, actual: pl.DataFrame) -> pl.DataFrame:
    """Return the actual windows with the expected values. Counts, minima and maxima are equal, sums within 1e-9."""
    both = actual.join(expected, on=_KEYS, suffix="_expected")
    return both.filter(
        *(pl.col(name) == pl.col(f"{name}_expected") for name in ("n", "low", "high")),
        ((pl.col("total") - pl.col("total_expected")) / pl.col("total_expected")).abs() < 1e-9,
    )


def compare(expected: pl.DataFrame, actual: pl.DataFrame) -> Comparison:
    """Compare actual windows with expected ones. If a window is repeated, its last values are compared."""
    actual = actual.filter(pl.col("page") != FLUSH)
    last = actual.unique(_KEYS, keep="last", maintain_order=True)
    matching = last.join(expected, on=_KEYS, how="semi")
    return Comparison(
        expected=expected.height,
        missing=expected.height - matching.height,
        wrong=matching.height - right(expected, matching).height,
        unexpected=last.height - matching.height,
        repeated=actual.height - last.height,
    )


def windows_in_postgres(
    connection: psycopg.Connection[Any], schema: str, table: str = "by_page_v1"
) -> pl.DataFrame:  # fmt: skip
    """Return the windows in the table of an aggregation."""
    rows = connection.execute(
        "SELECT page, (extract(epoch FROM window_start) * 1000)::bigint, _count, _sum_latency_ms, _min_latency_ms,"
        f" _max_latency_ms FROM {schema}.{table}"
    ).fetchall()
    return pl.DataFrame(rows, schema=["page", "start", "n", "total", "low", "high"], orient="row")


class Results:
    """A reader of the results in a topic, from the beginning of the topic.

    Args:
        brokers: Addresses of the brokers.
        topic: Topic of the results.
        read: Function that turns the results' bytes into windows, such as `read_plain`.
    """

    def __init__(self, brokers: str, topic: str, read: Callable[[list[bytes]], pl.DataFrame]) -> None:
        self._read = read
        self._consumer = Consumer({
            "bootstrap.servers": brokers, "group.id": "bench-results", "isolation.level": "read_committed",
            "enable.auto.commit": False, "fetch.queue.backoff.ms": 5,
        })  # fmt: skip
        self._partitions = [TopicPartition(topic, p, 0) for p in end_offsets(brokers, topic)]
        self._consumer.assign(self._partitions)

    def count(self) -> int:
        """Return the number of results in the topic."""
        ends = (self._consumer.get_watermark_offsets(p, timeout=10, cached=False) for p in self._partitions)
        return sum(end for _, end in ends)

    def take(self, seconds: float) -> pl.DataFrame:
        """Return the windows that arrive within `seconds`. The column `at` has the broker's time (epoch ms)."""
        return self._frame(self._consumer.consume(50_000, seconds))

    def rest(self) -> pl.DataFrame:
        """Return all windows that were not returned before. Call it after the last result is written."""
        wanted = self.count()
        positions = (max(0, p.offset) for p in self._consumer.position(self._consumer.assignment()))
        missing = wanted - sum(positions)
        messages: list[Any] = []
        while len(messages) < missing:
            messages += self._consumer.consume(50_000, 1.0)
        return self._frame(messages)

    def _frame(self, messages: list[Any]) -> pl.DataFrame:
        records = [message for message in messages if message.error() is None]
        times = pl.Series("at", [message.timestamp()[1] for message in records], dtype=pl.Int64)
        return self._read([message.value() for message in records]).with_columns(times)

    def close(self) -> None:
        """Close the consumer."""
        self._consumer.close()


_NUMBERS: dict[str, Any] = {"n": pl.Int64, "total": pl.Float64, "low": pl.Float64, "high": pl.Float64}


def read_plain(values: list[bytes]) -> pl.DataFrame:
    """Return the windows in results of the other engines. Each result is a flat JSON object."""
    schema: dict[str, Any] = {"page": pl.String, "start": pl.Int64, **_NUMBERS}
    return pl.read_ndjson(b"\n".join(values), schema=schema) if values else pl.DataFrame(schema=schema)


def read_tidemill(values: list[bytes]) -> pl.DataFrame:
    """Return the windows in results that Tidemill publishes."""
    schema: dict[str, Any] = {
        "group": pl.Struct({"page": pl.String}), "window_start": pl.String, "metrics": pl.Struct(_NUMBERS),
    }  # fmt: skip
    raw = pl.read_ndjson(b"\n".join(values), schema=schema) if values else pl.DataFrame(schema=schema)
    frame = raw.unnest("group", "metrics")
    start = pl.col("window_start").str.to_datetime(time_unit="ms", time_zone="UTC").dt.epoch("ms")
    return frame.select("page", start.alias("start"), *_NUMBERS)
