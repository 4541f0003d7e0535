"""The job that engines are measured by: page views in a topic; per page and window count, sum, min and max.

Makes the topic, knows from a batch recomputation what must come out, and compares: windows in Postgres,
results in Kafka.
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
"""The page of the events that push every window shut; it is in no comparison."""
_FUTURE_MS = 600_000
PRODUCER = {
    "linger.ms": 5, "batch.size": 262_144, "queue.buffering.max.messages": 500_000, "partitioner": "murmur2_random",
    "acks": "all",
}  # fmt: skip


@dataclass(frozen=True)
class Job:
    """What is in the topic and what is asked of it.

    Attributes:
        events: number of events, less the one a partition that shuts the windows.
        keys: number of pages, drawn uniformly.
        partitions: of the topic.
        step_ms: event time from one event to the next; each is up to 2 s behind that.
        window_ms: size of the tumbling windows.
    """

    events: int
    keys: int
    partitions: int = 4
    step_ms: int = 5
    window_ms: int = 60_000

    @property
    def total(self) -> int:
        """Records in the topic."""
        return self.events + self.partitions

    @property
    def topic(self) -> str:
        """The topic's name, different for different jobs."""
        return f"{NAMESPACE}.job-{self.events}-{self.keys}-{self.partitions}-{self.step_ms}"


def pipeline_spec(
    topic: str, *, partitions: int = 4, window_ms: int = 60_000, disorder_ms: int = 2_000, grace_ms: int = 5_000,
    publish: bool = True, aggregations: int = 1, flush_interval: str | None = None, function: str | None = None,
    watching: str | None = None,
) -> dict[str, Any]:  # fmt: skip
    """The job as a pipeline on a topic that is there already, `by_page` (the first aggregation) and copies of it.

    `function`: of one more metric, over users. `watching`: a detector's type; it judges each event's latency per page.
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
    """A new topic whose records carry the broker's time."""
    settings = {"message.timestamp.type": "LogAppendTime", "retention.ms": "-1"}
    kafka = AdminClient({"bootstrap.servers": brokers, "log_level": 3})
    kafka.create_topics([NewTopic(topic, partitions, 1, config=settings)])[topic].result(30)

    def led() -> bool:
        try:
            return len(end_offsets(brokers, topic)) == partitions
        except KafkaException:
            return False

    await_condition(led, seconds=30, interval=0.1)


def drop_topics(brokers: str, chosen: Callable[[str], bool]) -> None:
    """Delete the topics whose names are chosen."""
    kafka = AdminClient({"bootstrap.servers": brokers, "log_level": 3})
    names = [name for name in kafka.list_topics(timeout=10).topics if chosen(name)]
    if names:
        for future in kafka.delete_topics(names).values():
            future.result(30)


def drawn(job: Job) -> pl.DataFrame:
    """The job's events in the order of the topic: `ts`, `page`, `v`; the same at every call."""
    random = np.random.default_rng(job.events + job.keys)
    late = random.integers(0, 2_000, job.events)
    pages = random.integers(0, job.keys, job.events)
    values = (1 + 400 * random.random(job.events) * random.random(job.events)).round(3)
    ts = BASE + np.arange(job.events) * job.step_ms - late
    return pl.DataFrame({"ts": ts, "page": pages, "v": values}).with_columns(
        page=pl.concat_str(pl.lit("/p"), pl.col("page"))
    )


def fill(brokers: str, job: Job) -> None:
    """Fill the job's topic, which is there and empty; the last event of each partition pushes every window shut.

    Raises:
        RuntimeError: not everything is in it afterwards.
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
    shut(producer, job.topic, job.partitions, BASE + job.events * job.step_ms + max(_FUTURE_MS, 2 * job.window_ms))
    if (found := sum(end_offsets(brokers, job.topic).values())) != job.total:
        raise RuntimeError(f"{job.topic} has {found} records, not {job.total}")


def shut(producer: Producer, topic: str, partitions: int, ts: int) -> None:
    """Write the event that pushes windows shut to each partition, and wait for all that was written."""
    for partition in range(partitions):
        event = {"ts": ts, "page": FLUSH, "user_id": "u0", "latency_ms": 1.0, "country": "DE"}
        producer.produce(topic, json.dumps(event), key=FLUSH, partition=partition)
    if left := producer.flush(60):
        raise RuntimeError(f"{left} records of {topic} were not acknowledged")


def end_offsets(brokers: str, topic: str) -> dict[int, int]:
    """End offset of each partition of a topic."""
    consumer = Consumer({"bootstrap.servers": brokers, "group.id": "bench-ends", "log_level": 3})
    try:
        partitions = consumer.list_topics(topic, timeout=10).topics[topic].partitions
        return {p: consumer.get_watermark_offsets(TopicPartition(topic, p), timeout=10)[1] for p in partitions}
    finally:
        consumer.close()


def recomputed(events: pl.DataFrame, window_ms: int) -> pl.DataFrame:
    """The windows of events (`ts`, `page`, `v`): `page`, `start` (epoch ms), `n`, `total`, `low`, `high`."""
    value = pl.col("v")
    return events.group_by("page", start=pl.col("ts") // window_ms * window_ms).agg(
        n=pl.len().cast(pl.Int64), total=value.sum(), low=value.min(), high=value.max()
    )


@dataclass(frozen=True)
class Comparison:
    """How windows found differ from those expected: numbers of windows."""

    expected: int
    missing: int
    wrong: int
    unexpected: int
    repeated: int

    @property
    def exact(self) -> bool:
        """Whether each window is there once and right."""
        return not (self.missing or self.wrong or self.unexpected or self.repeated)


_KEYS = ["page", "start"]


def right(expected: pl.DataFrame, found: pl.DataFrame) -> pl.DataFrame:
    """The windows found that are as expected: counts, minima and maxima exactly, sums within 1e-9."""
    both = found.join(expected, on=_KEYS, suffix="_expected")
    return both.filter(
        *(pl.col(name) == pl.col(f"{name}_expected") for name in ("n", "low", "high")),
        ((pl.col("total") - pl.col("total_expected")) / pl.col("total_expected")).abs() < 1e-9,
    )


def compare(expected: pl.DataFrame, found: pl.DataFrame) -> Comparison:
    """What is right and what is not; of a window found several times the last one counts."""
    found = found.filter(pl.col("page") != FLUSH)
    last = found.unique(_KEYS, keep="last", maintain_order=True)
    there = last.join(expected, on=_KEYS, how="semi")
    return Comparison(
        expected=expected.height,
        missing=expected.height - there.height,
        wrong=there.height - right(expected, there).height,
        unexpected=last.height - there.height,
        repeated=found.height - last.height,
    )


def windows_in_postgres(
    connection: psycopg.Connection[Any], schema: str, table: str = "by_page_v1"
) -> pl.DataFrame:  # fmt: skip
    """The windows of an aggregation's table."""
    rows = connection.execute(
        "SELECT page, (extract(epoch FROM window_start) * 1000)::bigint, _count, _sum_latency_ms, _min_latency_ms,"
        f" _max_latency_ms FROM {schema}.{table}"
    ).fetchall()
    return pl.DataFrame(rows, schema=["page", "start", "n", "total", "low", "high"], orient="row")


class Results:
    """Reads the results of a topic from its beginning, as far as they have come.

    Args:
        brokers: of the cluster.
        topic: where results come out.
        read: results as bytes to windows; see `read_plain`.
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
        """How many there are, taken or not."""
        ends = (self._consumer.get_watermark_offsets(p, timeout=10, cached=False) for p in self._partitions)
        return sum(end for _, end in ends)

    def take(self, seconds: float) -> pl.DataFrame:
        """What comes within so many seconds: windows, with `at`, the broker's time of each (epoch ms)."""
        return self._frame(self._consumer.consume(50_000, seconds))

    def rest(self) -> pl.DataFrame:
        """All that is there and not taken yet; once everything is written."""
        wanted = self.count()
        at = {p.partition: max(0, p.offset) for p in self._consumer.position(self._consumer.assignment())}
        messages: list[Any] = []
        while len(messages) < wanted - sum(at.values()):
            messages += self._consumer.consume(50_000, 1.0)
        return self._frame(messages)

    def _frame(self, messages: list[Any]) -> pl.DataFrame:
        records = [message for message in messages if message.error() is None]
        times = pl.Series("at", [message.timestamp()[1] for message in records], dtype=pl.Int64)
        return self._read([message.value() for message in records]).with_columns(times)

    def close(self) -> None:
        """Leave."""
        self._consumer.close()


_NUMBERS: dict[str, Any] = {"n": pl.Int64, "total": pl.Float64, "low": pl.Float64, "high": pl.Float64}


def read_plain(values: list[bytes]) -> pl.DataFrame:
    """Results as the other engines write them: one flat JSON object."""
    schema: dict[str, Any] = {"page": pl.String, "start": pl.Int64, **_NUMBERS}
    return pl.read_ndjson(b"\n".join(values), schema=schema) if values else pl.DataFrame(schema=schema)


def read_tidemill(values: list[bytes]) -> pl.DataFrame:
    """Results as Tidemill publishes them."""
    schema: dict[str, Any] = {
        "group": pl.Struct({"page": pl.String}), "window_start": pl.String, "metrics": pl.Struct(_NUMBERS),
    }  # fmt: skip
    raw = pl.read_ndjson(b"\n".join(values), schema=schema) if values else pl.DataFrame(schema=schema)
    frame = raw.unnest("group", "metrics")
    start = pl.col("window_start").str.to_datetime(time_unit="ms", time_zone="UTC").dt.epoch("ms")
    return frame.select("page", start.alias("start"), *_NUMBERS)
