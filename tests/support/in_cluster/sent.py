"""The events that tests send to a pipeline in a cluster, and their comparison with its windows."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import httpx
import polars as pl

from demo.answers import check_accounts, wait_settled
from demo.cluster import ClusterPlatform
from demo.compare import compare_all
from demo.expected import milliseconds
from demo.replay import Replay, Totals, to_batches

_BATCH = 200
# Prints all records of a topic. It runs in the operator's pod, which can resolve the brokers' names.
_RECORDS = """\
import os, sys
from confluent_kafka import OFFSET_BEGINNING, Consumer, TopicPartition
consumer = Consumer({
    "bootstrap.servers": os.environ["TIDEMILL_KAFKA_BROKERS"], "group.id": "e2e", "enable.auto.commit": False
})
partitions = consumer.list_topics(sys.argv[1], timeout=30).topics[sys.argv[1]].partitions
places = [TopicPartition(sys.argv[1], partition, OFFSET_BEGINNING) for partition in partitions]
left = sum(consumer.get_watermark_offsets(place, timeout=30)[1] for place in places)
consumer.assign(places)
while left:
    message = consumer.poll(60)
    if message is None or message.error():
        raise SystemExit(f"{left} records cannot be read: {message and message.error()}")
    sys.stdout.buffer.write(message.value() + b"\\n")
    left -= 1
"""


def to_lines(frame: pl.DataFrame) -> list[bytes]:
    """Return each event as a JSON object. Timestamps have milliseconds."""
    times = [name for name, kind in frame.schema.items() if isinstance(kind, pl.Datetime)]
    text = frame.with_columns(pl.col(name).dt.strftime("%Y-%m-%dT%H:%M:%S%.3fZ") for name in times).write_ndjson()
    return text.encode().splitlines()


@dataclass
class Sent:
    """All events that a test has sent to a pipeline.

    Attributes:
        totals: Numbers of events in the answers of ingest.
        repeated: Number of events that are in the topic twice.
    """

    platform: ClusterPlatform
    frames: list[pl.DataFrame] = field(default_factory=list)
    totals: Totals = field(default_factory=Totals)
    repeated: int = 0

    @property
    def number(self) -> int:
        """Number of events."""
        return sum(frame.height for frame in self.frames)

    def lines(self) -> list[bytes]:
        """Return the events as the lines that were sent."""
        return to_lines(pl.concat(self.frames))

    def send(self, frame: pl.DataFrame, *, gate: Callable[[int], None] = lambda _: None) -> None:
        """Send events and wait until they are acknowledged."""
        event_time = self.platform.document["spec"]["source"]["eventTime"]
        times = frame[event_time["field"]].dt.epoch("ms").to_list()
        disorder = milliseconds(event_time["maxDisorder"])
        replay = Replay(self.platform.url("ingest"), self.platform.name, disorder_ms=disorder, gate=gate)
        totals = replay.run(to_batches(to_lines(frame), times, _BATCH))
        self.frames.append(frame)
        self.totals.accepted += totals.accepted
        self.totals.quarantined += totals.quarantined
        self.totals.retried += totals.retried
        self.totals.unanswered += totals.unanswered

    @contextmanager
    def load(self, frame: pl.DataFrame, *, seconds: float = 10.0) -> Iterator[None]:
        """Send events at a steady rate while the block runs. The last 5 % follow at the end of the block."""
        began, over, failed = time.monotonic(), threading.Event(), []

        def gate(before: int) -> None:
            share = before / frame.height
            while (share > 0.95 and not over.is_set()) or share > (time.monotonic() - began) / seconds:
                time.sleep(0.05)

        def send() -> None:
            try:
                self.send(frame, gate=gate)
            except BaseException as error:
                failed.append(error)

        thread = threading.Thread(target=send)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
        assert failed == []

    def check(self) -> None:
        """Check that each event counts once in each of its windows, and that no event is a dead letter.

        On a busy machine, an acknowledgement may be late. Then the event is sent again, and may be in the topic twice.
        Such an event counts twice. No other event may be in the topic twice.
        """
        with httpx.Client(timeout=60.0, trust_env=False) as client:
            wait_settled(client, self.platform, self.totals.acknowledged)
            records = sum(self.platform.topic_ends().values())
            assert (self.totals.accepted, self.totals.quarantined) == (self.number, 0)
            self.repeated = records - self.number
            assert 0 <= self.repeated <= self.totals.uncertain
            counted = Totals(accepted=records)
            assert check_accounts(client, self.platform, counted, sent=records) == []
            self.compare(client)

    def compare(self, client: httpx.Client) -> None:
        """Check that all windows are equal to a recomputation in one batch."""
        spec, base = self.platform.document["spec"], self.platform.url("api")
        events = self.records() if self.repeated else pl.concat(self.frames)
        for result in compare_all(client, base, self.platform.name, spec, events):
            differences = f"{result.wrong} differences: {'; '.join(result.differences)}"
            assert result.wrong == 0, f"{result.aggregation}: {differences}"
            assert result.answered == result.windows > 0, result.aggregation

    def records(self) -> pl.DataFrame:
        """Return the events in the topic. Check that they are the events that were sent, some of them repeated."""
        sent = pl.concat(self.frames)
        topic = f"{self.platform.namespace}.{self.platform.name}.events"
        lines = self.platform.run_in_operator("python", "-c", _RECORDS, topic)
        times = {name: kind for name, kind in sent.schema.items() if isinstance(kind, pl.Datetime)}
        text = pl.read_ndjson(lines.encode(), schema={**sent.schema, **dict.fromkeys(times, pl.String())})
        events = text.with_columns(pl.col(name).str.to_datetime(time_unit="ms", time_zone="UTC") for name in times)
        assert events.unique().sort(events.columns).equals(sent.unique().sort(events.columns))
        return events
