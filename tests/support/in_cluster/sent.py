"""The account of what a pipeline in a cluster was sent, and its comparison with what was counted."""

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
    """One JSON object an event; timestamps with their milliseconds."""
    times = [name for name, kind in frame.schema.items() if isinstance(kind, pl.Datetime)]
    text = frame.with_columns(pl.col(name).dt.strftime("%Y-%m-%dT%H:%M:%S%.3fZ") for name in times).write_ndjson()
    return text.encode().splitlines()


@dataclass
class Sent:
    """Everything that one pipeline was sent, and what ingest said of it."""

    platform: ClusterPlatform
    frames: list[pl.DataFrame] = field(default_factory=list)
    totals: Totals = field(default_factory=Totals)
    repeated: int = 0

    @property
    def number(self) -> int:
        """Of events."""
        return sum(frame.height for frame in self.frames)

    def lines(self) -> list[bytes]:
        """The events as they were sent."""
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
        """Send events at an even pace while the block runs; the last ones come after it."""
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
        """Every event is counted once, in every window of every aggregation, and none is a dead letter.

        A machine that does much else may lose an acknowledgement, and the event is sent again: then it may be in the
        topic twice, and counts twice. What counts is what the topic holds, and no other event may be there twice.
        """
        with httpx.Client(timeout=60.0, trust_env=False) as client:
            wait_settled(client, self.platform, self.totals.acknowledged)
            held = sum(self.platform.topic_ends().values())
            assert (self.totals.accepted, self.totals.quarantined) == (self.number, 0)
            self.repeated = held - self.number
            assert 0 <= self.repeated <= self.totals.uncertain
            counted = Totals(accepted=held)
            assert check_accounts(client, self.platform, counted, sent=held) == []
            self.compare(client)

    def compare(self, client: httpx.Client) -> None:
        """All windows are what a batch recomputation finds."""
        spec, base = self.platform.document["spec"], self.platform.url("api")
        events = self.records() if self.repeated else pl.concat(self.frames)
        for found in compare_all(client, base, self.platform.name, spec, events):
            assert found.wrong == 0, f"{found.aggregation}: {found.wrong} differences: {'; '.join(found.differences)}"
            assert found.answered == found.windows > 0, found.aggregation

    def records(self) -> pl.DataFrame:
        """The events as the topic has them: those that were sent, some of them more than once."""
        sent = pl.concat(self.frames)
        topic = f"{self.platform.namespace}.{self.platform.name}.events"
        lines = self.platform.run_in_operator("python", "-c", _RECORDS, topic)
        times = {name: kind for name, kind in sent.schema.items() if isinstance(kind, pl.Datetime)}
        text = pl.read_ndjson(lines.encode(), schema={**sent.schema, **dict.fromkeys(times, pl.String())})
        held = text.with_columns(pl.col(name).str.to_datetime(time_unit="ms", time_zone="UTC") for name in times)
        assert held.unique().sort(held.columns).equals(sent.unique().sort(held.columns))
        return held
