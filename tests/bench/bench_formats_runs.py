"""Runs of an engine over a full topic in a format, and their figures."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import polars as pl
import psycopg
from bench_catch_up import Bench, end_process, has_ended, prepared
from bench_engines import SOURCES, Peer
from bench_tidemill import Meter, consumed
from confluent_kafka import Producer
from shared.job import BASE, FLUSH, PRODUCER, Comparison, Job, Results, compare, end_offsets, read_plain
from shared.support import Cpu, Pipeline, await_condition
from shared.written import Needs, Written, exact_numbers

STAGE_FOLDER = SOURCES / "flink-sql"
_NUMBERS: dict[str, Any] = {"n": pl.Int64, "total": pl.Float64, "low": pl.Float64, "high": pl.Float64}
_SCHEMA: dict[str, Any] = {"page": pl.String, "start": pl.Int64, **_NUMBERS}
_EXACT = _SCHEMA | dict.fromkeys(("total", "low", "high"), pl.Int64)


@dataclass(frozen=True)
class Filled:
    """A full topic.

    Attributes:
        records: Number of records, including the last record of each partition, which closes the windows.
        expected: The expected windows.
    """

    row: str
    written: Written
    job: Job
    topic: str
    records: int
    expected: pl.DataFrame
    needs: Needs


@dataclass(frozen=True)
class Measured:
    """The figures of a run.

    Attributes:
        size: Number of events in the topic.
        events: Number of events that the figures cover.
        cpu_seconds: User and system time of the engine's processes, and of Postgres if the engine uses it.
        share: Share of the expected results that appeared within the time limit. Below 1, the run was stopped.
        load_average: Load average of the machine over the minute before.
    """

    row: str
    engine: str
    size: int
    events: int
    cpu_seconds: float
    wall_seconds: float
    share: float
    comparison: Comparison | None
    load_average: float

    @property
    def rate(self) -> float:
        """Events per CPU-second. In an unfinished run, the events are estimated from the share of its results."""
        return self.events * self.share / self.cpu_seconds if self.cpu_seconds else 0.0

    @property
    def exact(self) -> bool:
        """Whether all results appeared and are right."""
        return self.comparison is not None and self.comparison.exact


@dataclass
class Progress:
    """The progress of an engine. It is printed every few seconds.

    Attributes:
        begin: CPU seconds at the beginning of the run.
        began: Time of the beginning.
        last: CPU seconds since the beginning and the share of finished work, from 0 to 1, at the last note.
        printed: Time of the last print.
    """

    begin: float
    began: float = field(default_factory=time.monotonic)
    last: tuple[float, float] = (0.0, 0.0)
    printed: float = 0.0

    def note(self, cpu: float, share: float) -> None:
        """Note the CPU seconds and the share of finished work."""
        self.last = cpu - self.begin, share
        now = time.monotonic()
        if now - max(self.printed, self.began) > 5:
            self.printed = now
            text = f"    {share:.0%} after {now - self.began:.0f} s, {cpu - self.begin:.1f} s of CPU"
            print(text, file=sys.stderr, flush=True)


def fill_topic(
    bench: Bench, row: str, written: Written, *, job: Job, topic: str, events: pl.DataFrame, number: int
) -> int:
    """Fill an empty topic with the events of a job, and return its number of records."""
    producer = Producer({"bootstrap.servers": bench.servers.kafka, **PRODUCER})
    step = 10_000 * written.elements
    for frame in events.iter_slices(step):
        keys = frame["page"].gather_every(written.elements)
        for key, value in zip(keys, written.encode(frame, number), strict=True):
            while True:
                try:
                    producer.produce(topic, value, key=key)
                    break
                except BufferError:
                    producer.poll(0.05)
        producer.poll(0)
    after = BASE + job.events * job.step_ms + max(600_000, 2 * job.window_ms)
    last = pl.DataFrame({"ts": [after], "page": [FLUSH], "user_id": ["u0"], "latency_ms": [1.0], "country": ["DE"]})
    (value,) = written.encode(last, number)
    for partition in range(job.partitions):
        producer.produce(topic, value, key=FLUSH, partition=partition)
    left = producer.flush(120)
    records = job.events // written.elements + job.partitions
    written_records = sum(end_offsets(bench.servers.kafka, topic).values())
    if left or written_records != records:
        raise RuntimeError(f"{row}: {topic} has {written_records} records, not {records}")
    return records


def run_tidemill(bench: Bench, filled: Filled, environment: dict[str, str]) -> Measured:
    """Run the processor, and the Python stage if the row has one, until all windows are stored and published."""
    written, job, expected = filled.written, filled.job, filled.expected
    spec = written.pipeline(filled.topic, filled.needs, partitions=job.partitions, window_ms=job.window_ms)
    pipeline = Pipeline(bench.servers, bench.folder, bench.name(f"tidemill-{filled.row}"), spec)
    load = os.getloadavg()[0]
    results = Results(bench.servers.kafka, pipeline.config.topic("results"), _reader_of_tidemill(written))
    with pipeline.connect() as connection, ExitStack() as stack:
        modules = ["tidemill_processor", *(["tidemill_processor.stage"] if written.python else [])]
        processes = [stack.enter_context(pipeline.run(module, extra=environment)) for module in modules]
        meter = Meter.of(bench.servers, [process.pid for process in processes], [connection])
        if written.python:  # The stage works before the processor gets its first event.
            begins: Callable[[], int] = lambda: sum(  # noqa: E731
                end_offsets(bench.servers.kafka, pipeline.config.read_topic).values()
            )
        else:
            begins = lambda: consumed(connection, pipeline)  # noqa: E731
        await_condition(begins, seconds=120, interval=0.01)
        first = 0 if written.python else consumed(connection, pipeline)
        progress, begin = Progress(sum(meter.read())), time.monotonic()

        def done() -> bool:
            stored, published = consumed(connection, pipeline), results.count()
            progress.note(sum(meter.read()), (stored - first) / max(1, filled.records - first))
            return stored >= filled.records and published >= expected.height

        complete = True
        try:
            await_condition(done, seconds=bench.options.limit, interval=0.05)
        except TimeoutError:
            complete = False
        wall = time.monotonic() - begin
        comparison = compare(expected, _in_postgres(connection, pipeline, filled)) if complete else None
    if comparison is not None and comparison.exact:
        comparison = compare(expected, results.rest())
    results.close()
    last, share = progress.last
    events = (filled.records - first) * written.elements
    return Measured(
        filled.row, "tidemill", job.events, events, last, wall, share, comparison, load
    )  # fmt: skip


def run_flink(bench: Bench, peer: Peer, filled: Filled) -> Measured:
    """Run Flink SQL until all results have appeared or the time is over."""
    written, job, expected = filled.written, filled.job, filled.expected
    name, load = bench.name(f"flink-{filled.row}"), os.getloadavg()[0]
    out, environment = prepared(bench, name, filled.topic, job.partitions, job.window_ms, 5_000)
    statements = written.statements(filled.needs, environment, window_ms=job.window_ms, behind_ms=5_000)
    environment |= {"SQL": "\n--\n".join(statements), **dict(peer.environment)}
    results, log = Results(bench.servers.kafka, out, _reader_of_flink(written)), bench.folder / f"{name}.log"
    process = peer.start(environment, log)
    try:
        assert process.stdout is not None
        if not any(line.startswith("FIRST") for line in process.stdout):
            raise RuntimeError(f"{name} ended before its first record: {log.read_text()[-3000:]}")
        used = [Cpu(process.pid), *([Cpu(bench.servers.handles["postgres"].pid)] if written.postgres else [])]
        progress, begin, count = Progress(sum(cpu.seconds() for cpu in used)), time.monotonic(), 0
        while count < expected.height and time.monotonic() - begin < bench.options.limit:
            time.sleep(0.1)
            ended, seconds = has_ended(process), sum(cpu.seconds() for cpu in used)
            if (now := results.count()) > count:
                count = now
                progress.note(seconds, min(1.0, count / expected.height))
            elif ended:
                raise RuntimeError(f"{name} ended: {log.read_text()[-3000:]}")
        wall = time.monotonic() - begin
    finally:
        end_process(process)
    comparison = compare(expected, results.rest()) if count >= expected.height else None
    results.close()
    last, share = progress.last
    return Measured(
        filled.row, "flink", job.events, job.events, last, wall, share, comparison, load
    )  # fmt: skip


def _in_postgres(connection: psycopg.Connection[Any], pipeline: Pipeline, filled: Filled) -> pl.DataFrame:
    """Return the windows in Tidemill's table without the last window, which is open."""
    kind = "bigint" if filled.written.exact else "double precision"
    values = ", ".join(f"_{function}_latency_ms::{kind}" for function in ("sum", "min", "max"))
    rows = connection.execute(
        f"SELECT {filled.written.group}, (extract(epoch FROM window_start) * 1000)::bigint, _count, {values}"
        f" FROM {pipeline.schema}.by_page_v1"
    ).fetchall()
    schema = _EXACT if filled.written.exact else _SCHEMA
    windows = pl.DataFrame(rows, schema=schema, orient="row")
    return windows.filter(pl.col("start") <= filled.expected["start"].max())


def _reader_of_flink(written: Written) -> Callable[[list[bytes]], pl.DataFrame]:
    return _exactly(lambda result: (result["page"], result["start"], result)) if written.exact else read_plain


def _reader_of_tidemill(written: Written) -> Callable[[list[bytes]], pl.DataFrame]:
    if written.exact:
        return _exactly(lambda result: (result["group"]["page"], _moment(result["window_start"]), result["metrics"]))
    schema: dict[str, Any] = {
        "group": pl.Struct({written.group: pl.String}), "window_start": pl.String, "metrics": pl.Struct(_NUMBERS),
    }  # fmt: skip

    def read(values: list[bytes]) -> pl.DataFrame:
        raw = pl.read_ndjson(b"\n".join(values), schema=schema) if values else pl.DataFrame(schema=schema)
        start = pl.col("window_start").str.to_datetime(time_unit="ms", time_zone="UTC").dt.epoch("ms")
        frame = raw.unnest("group", "metrics")
        return frame.select(pl.col(written.group).alias("page"), start.alias("start"), *_NUMBERS)

    return read


def _moment(text: str) -> int:
    times = pl.Series([text]).str.to_datetime(time_unit="ms", time_zone="UTC").dt.epoch("ms")
    return int(times[0])


def _exactly(parts_of: Callable[[Any], tuple[str, int, Any]]) -> Callable[[list[bytes]], pl.DataFrame]:
    """Return a reader of results with decimals. No value becomes a float.

    Args:
        parts_of: Function that returns the page, the start of the window and the metrics of a result.
    """

    def read(values: list[bytes]) -> pl.DataFrame:
        rows = []
        for value in values:
            page, start, numbers = parts_of(json.loads(value, parse_float=Decimal))
            rows.append((page, start, numbers["n"], *(exact_numbers(numbers[x]) for x in ("total", "low", "high"))))
        return pl.DataFrame(rows, schema=_EXACT, orient="row")

    return read
