"""Tests of the keeper: failing duties are retried and reported, and unreadable windows are found by bisection."""

from __future__ import annotations

import datetime as dt
import threading
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import psycopg
import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st

from tidemill_contract.runtime import PipelineConfig
from tidemill_contract.times import rfc3339, rfc3339_ms
from tidemill_processor.database import Database
from tidemill_processor.errors import error_text, is_permanent
from tidemill_processor.keeper.duties import Duty, DutyRunner
from tidemill_processor.keeper.health import keeper_health
from tidemill_processor.keeper.keeper import Keeper, KeeperWorkers
from tidemill_processor.publish.live import (
    CHANGE_BYTES,
    ENTRY_BYTES,
    MAX_ROWS,
    STREAM_BYTES,
    STREAM_LENGTH,
    LiveSender,
    _pieces,
)
from tidemill_processor.publish.producer import PublishFailed
from tidemill_processor.windows.reader import WindowFilter, WindowReader
from tidemill_processor.windows.salvage import Salvage

SCAN, PUBLISH = Duty("scan", "sales", 1), Duty("publish", "visits", 2)
BASE = 1_700_000_000_000
EPOCH, MS = dt.datetime(1970, 1, 1, tzinfo=dt.UTC), dt.timedelta(milliseconds=1)


class Connection:
    """A Postgres connection that records the statements of duties and searches."""

    def __init__(self) -> None:
        self.closed = False
        self.executed: list[tuple[str, Any]] = []

    def execute(self, text: str, values: Any = ()) -> None:
        self.executed.append((text.split()[0], values))

    @contextmanager
    def transaction(self) -> Iterator[None]:
        yield

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self.closed = True


def connection() -> Any:
    return Connection()


@pytest.mark.parametrize(
    ("error", "permanent"),
    [
        (psycopg.errors.NumericValueOutOfRange("overflow"), True),
        (psycopg.errors.UndefinedColumn("no such column"), True),
        (psycopg.errors.ProgramLimitExceeded("too long"), True),  # The error is an OperationalError of psycopg.
        (psycopg.errors.DataCorrupted("bad page"), True),
        (psycopg.DataError("timestamp too large"), True),  # The error comes from psycopg, not from Postgres.
        (OverflowError("int too large"), True),
        (KeyError("n"), True),
        (psycopg.errors.AdminShutdown("bye"), False),
        (psycopg.errors.QueryCanceled("timeout"), False),
        (psycopg.errors.LockNotAvailable("lock"), False),
        (psycopg.errors.SerializationFailure("again"), False),
        (psycopg.errors.ReadOnlySqlTransaction("standby"), False),
        (psycopg.errors.DiskFull("full"), False),
        (psycopg.OperationalError("connection refused"), False),
        (PublishFailed("not acknowledged"), False),
        (ConnectionRefusedError(), False),
    ],
)
def test_an_error_of_data_or_code_is_permanent_but_an_unavailable_server_is_not(
    error: Exception, permanent: bool
) -> None:
    assert is_permanent(error) == permanent
    assert "\n" not in error_text(error)
    assert error_text(error)


class Stage:
    """A duty runner with a manual clock."""

    def __init__(self) -> None:
        self.now, self.connection = 0.0, connection()
        self.runner = DutyRunner('"s"', lambda: self.now)

    def run(self, duty: Duty, error: Exception | None = None) -> int:
        def work() -> int:
            if error is not None:
                raise error
            return 7

        return self.runner.run(self.connection, duty, work)


def test_a_failing_duty_does_not_stop_another_duty() -> None:
    stage = Stage()
    assert stage.run(SCAN, OverflowError("int too large")) == 0
    assert stage.run(PUBLISH) == 7
    assert list(stage.runner.failures) == [SCAN]
    assert stage.connection.executed[0] == ("INSERT", ("sales", 1, "scan", "OverflowError: int too large"))


@pytest.mark.parametrize(("error", "most"), [(ValueError("x"), 30.0), (psycopg.errors.QueryCanceled("slow"), 4.0)])
def test_a_failing_duty_is_retried_after_growing_pauses(error: Exception, most: float) -> None:
    """The first retry waits too. If the server is unavailable, pauses stay short."""
    stage, waits, last = Stage(), [], 0.0
    for _ in range(12):
        stage.run(SCAN, error)
        failure = stage.runner.failure(SCAN)
        assert failure is not None
        waits.append(failure.retry_at - stage.now)
        stage.now = failure.retry_at - 0.01
        tries = failure.tries
        stage.run(SCAN, error)
        assert cast(Any, stage.runner.failure(SCAN)).tries == tries
        stage.now, last = failure.retry_at, waits[-1]
    assert waits == sorted(waits)
    assert (waits[0], last) == (0.5, most)
    assert stage.run(SCAN) == 7
    assert stage.runner.failures == {}
    assert stage.connection.executed[-1] == ("DELETE", ("sales", 1, "scan"))


def test_an_unavailable_server_is_reported_only_after_a_minute() -> None:
    stage = Stage()
    stage.run(SCAN, psycopg.errors.LockNotAvailable("lock"))
    assert stage.connection.executed == []
    stage.now = 61.0
    stage.run(SCAN, psycopg.errors.LockNotAvailable("lock"))
    assert [kind for kind, _ in stage.connection.executed] == ["INSERT"]


def test_a_lost_connection_ends_the_pass() -> None:
    stage = Stage()
    stage.connection.closed = True
    with pytest.raises(psycopg.OperationalError):
        stage.run(SCAN, psycopg.OperationalError("gone"))
    assert stage.runner.failures == {}


@pytest.mark.parametrize("error", [RuntimeError("a defect"), OverflowError("x"), psycopg.OperationalError("away")])
def test_no_error_ends_the_thread_of_the_keeper(error: Exception) -> None:
    """The error is reported, and the next pass runs."""
    raised, worked, reports = threading.Event(), threading.Event(), []

    def duties(_: Any) -> KeeperWorkers:
        if not raised.is_set():
            raised.set()
            raise error
        reports.append(keeper_health(keeper))
        worked.set()
        raise error

    keeper = Keeper(connection, duties, DutyRunner('"s"'), 0.01)
    keeper.start()
    assert worked.wait(10)
    assert keeper.is_alive()
    keeper.stop()
    assert reports[0].fields["keeper"] == error_text(error)
    assert reports[0].degraded
    # Health also reports that the thread has ended.
    keeper.error = ""
    assert "has ended" in keeper_health(keeper).fields["keeper"]


def test_health_names_the_aggregation_and_the_reason() -> None:
    keeper = Keeper(connection, cast(Any, None), DutyRunner('"s"'), 1.0)
    assert keeper_health(keeper).fields == dict.fromkeys(("keeper", "closing", "scanning", "publishing", "live"), "ok")
    assert not keeper_health(keeper).degraded
    keeper.runner.run(connection(), PUBLISH, lambda: 1 // 0)
    report = keeper_health(keeper)
    assert report.degraded
    assert report.fields["publishing"].startswith("visits: ZeroDivisionError: ")
    assert report.fields["scanning"] == "ok"


class Reader:
    """Windows in memory, from (group, start) to metrics. Some metrics raise when they are selected."""

    groups, metrics = ["k"], ["a", "b", "c"]

    def __init__(self, rows: dict[tuple[str, int], Any], bad: set[tuple[str, int, str]], broken: bool) -> None:
        self.rows, self.bad, self.broken, self.queries = rows, bad, broken, 0

    def query(self, window_filter: WindowFilter) -> Any:
        return window_filter

    def fetch(self, _: Any, window_filter: WindowFilter) -> Iterator[tuple[Any, ...]]:
        self.queries += 1
        if self.broken:
            raise psycopg.errors.UndefinedColumn("no such column")
        for (group, start), values in sorted(self.rows.items(), key=lambda row: row[0][1]):
            if (
                not (window_filter.first_ms or 0)
                <= start
                <= (2**62 if window_filter.last_ms is None else window_filter.last_ms)
            ):
                continue
            if window_filter.depth and _hash(group) & (2**window_filter.depth - 1) != window_filter.bits:
                continue
            if any((group, start, name) in self.bad for name in self.metrics if name not in window_filter.null_metrics):
                raise psycopg.errors.NumericValueOutOfRange("value out of range: overflow")
            values_read = [
                None if name in window_filter.null_metrics else value
                for name, value in zip(self.metrics, values, strict=True)
            ]
            yield (group, EPOCH + start * MS, *values_read)

    def convert_row(self, row: tuple[Any, ...], unread: dict[str, str] | None = None) -> list[Any]:
        values = list(row)
        for index, name in enumerate(self.metrics, 2):
            if values[index] == "damaged":
                assert unread is not None
                values[index], unread[name] = None, "ValueError: damaged"
        values[1] = rfc3339(values[1])
        values.insert(2, "end")
        return values


def _hash(group: str) -> int:
    return zlib.crc32(group.encode())


def salvaged(
    rows: dict[tuple[str, int], Any], bad: set[tuple[str, int, str]], *, broken: bool = False
) -> tuple[dict[tuple[str, str], list[Any]], Salvage, int]:
    reader = Reader(rows, bad, broken)
    salvage = Salvage(connection(), cast(WindowReader, reader), cast(Callable[[WindowFilter], Any], reader.query))
    windows = {(row[0], row[1]): row[3:] for row in salvage.rows()}
    return windows, salvage, reader.queries


def grid(groups: int, starts: int) -> dict[tuple[str, int], Any]:
    return {(f"g{g}", BASE + s * 60_000): [1, 2.0, "x"] for g in range(groups) for s in range(starts)}


_places = st.sets(st.tuples(st.integers(0, 11), st.integers(0, 7), st.sampled_from("abc")), max_size=5)


@given(_places, _places)
def test_only_unreadable_values_are_null_and_each_is_named(raising: set[Any], damaged: set[Any]) -> None:
    """Values are unreadable if Postgres refuses them or if they cannot be decoded."""
    rows = grid(12, 8)
    at = {(f"g{g}", BASE + s * 60_000, name) for g, s, name in raising}
    for g, s, name in damaged - raising:
        rows[f"g{g}", BASE + s * 60_000]["abc".index(name)] = "damaged"
    windows, salvage, _ = salvaged(rows, at)
    expected = {(group, rfc3339_ms(start)): [1, 2.0, "x"] for group, start in rows}
    for g, s, name in raising | damaged:
        expected[f"g{g}", rfc3339_ms(BASE + s * 60_000)]["abc".index(name)] = None
    assert windows == expected
    named = {(msgspec.json.decode(skip.group or "{}")["k"], skip.start, *skip.metrics) for skip in salvage.skips}
    assert named == {(f"g{g}", rfc3339_ms(BASE + s * 60_000), name) for g, s, name in raising | damaged}


def test_a_single_unreadable_row_is_found_with_few_queries() -> None:
    windows, _, queries = salvaged(grid(100, 20), {("g77", BASE + 11 * 60_000, "b")})
    assert len(windows) == 2_000
    assert queries < 100


def test_the_search_for_many_unreadable_rows_has_a_bound() -> None:
    """The search gives up, and the metric is null in all rows that are left."""
    rows = grid(60, 10)
    windows, salvage, queries = salvaged(rows, {(group, start, "b") for group, start in rows})
    assert {tuple(values) for values in windows.values()} == {(1, None, "x")}
    assert len(windows) == len(salvage.skips) == 600
    assert queries < 1_200


def test_an_error_of_the_whole_table_is_raised() -> None:
    with pytest.raises(psycopg.errors.UndefinedColumn):
        salvaged(grid(2, 2), set(), broken=True)


def test_a_change_is_split_into_entries_of_bounded_size() -> None:
    """All rows are kept in order. A change that is far too large has no entries."""
    rows = [b"x" * 1_000 for _ in range(600)]
    pieces = _pieces(rows)
    assert pieces is not None
    assert len(pieces) == 3
    assert all(sum(len(bytes(row)) for row in piece) <= ENTRY_BYTES for piece in pieces)
    assert [bytes(row) for piece in pieces for row in piece] == rows
    assert _pieces([]) == [[]]
    assert _pieces([b"x" * (ENTRY_BYTES + 1)]) is None
    assert _pieces([b"x"] * (MAX_ROWS + 1)) is None
    assert _pieces([b"x" * 200_000] * (CHANGE_BYTES // 200_000 + 1)) is None


class Redis:
    """A Redis that records the sizes of a stream's entries."""

    def __init__(self) -> None:
        self.entries: deque[tuple[int, int]] = deque()

    def exists(self, _: str) -> int:
        return 1

    def xadd(self, _: str, entry: dict[str, bytes], *, minid: int = 0, **__: Any) -> int:
        while self.entries and self.entries[0][0] < minid:
            self.entries.popleft()
        self.entries.append((self.entries[-1][0] + 1 if self.entries else 1, len(entry["d"])))
        return self.entries[-1][0]


def test_a_stream_is_bounded_in_bytes_and_entries() -> None:
    names, stream = SimpleNamespace(namespace="n", name="p"), Redis()
    database, config = cast(Database, None), cast(PipelineConfig, names)
    live = LiveSender(database, [], config, cast(redis.Redis, stream), lambda call, *a, **k: call(*a, **k))
    for size in (10, 200_000):
        for _ in range(STREAM_LENGTH + 1_000 if size == 10 else 2 * STREAM_BYTES // size):
            live._send({"rows": "x" * size})
            if len(stream.entries) % 997 == 0 or size > 10:
                assert sum(size for _, size in stream.entries) <= STREAM_BYTES + 200_100
        assert len(stream.entries) <= STREAM_LENGTH + 1
    assert sum(size for _, size in stream.entries) > STREAM_BYTES / 2
