"""Tests that a processor that crashes before its n-th SQL statement loses and repeats nothing, on a real Postgres.

The next processor ends with the same tables as a processor that never crashed. `CRASH_EVERY=1` tries every n, as
`make crash-points` does. Otherwise, each run tries every tenth n from a random start.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest

from kafka_records import RawRecord
from tidemill_contract.resource.spec import PipelineSpec
from tidemill_contract.runtime import AggregationRef, PipelineConfig
from tidemill_processor.batches.reader import BatchReader
from tidemill_processor.database import Database
from tidemill_processor.detect.scanning import Scanner
from tidemill_processor.time.closing import Closer
from tidemill_processor.transaction import Committer, Position

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.exhaustive]

EVERY = int(os.environ.get("CRASH_EVERY", "10"))
MINUTE = 60_000
BASE = 1_700_000_000_000 // (60 * MINUTE) * 60 * MINUTE
METRICS = [
    {"name": "n", "function": "count"},
    {"name": "total", "function": "sum", "field": "v"},
    {"name": "spread", "function": "stddev", "field": "v"},
    {"name": "last", "function": "last", "field": "v"},
    {"name": "median", "function": "quantile", "field": "v", "q": 0.5},
    {"name": "common", "function": "topk", "field": "v", "k": 3},
]
WATCHED = {"type": "zscore", "threshold": 4, "warmup": 3, "cooldown": "1s"}
SPEC = PipelineSpec.model_validate(
    {
        "source": {
            "topic": {"partitions": 2},
            "fields": [
                {"name": "ts", "type": "timestamp", "required": True},
                {"name": "k", "type": "string"},
                {"name": "v", "type": "number"},
            ],
            "eventTime": {"field": "ts", "maxDisorder": "0s", "idleTimeout": "1h"},
        },
        "aggregations": [
            {"name": "minutes", "groupBy": ["k"], "window": {"type": "tumbling", "size": "1m"}, "metrics": METRICS},
            {"name": "hops", "window": {"type": "hopping", "size": "2m", "hop": "1m"}, "metrics": METRICS},
            {"name": "visits", "groupBy": ["k"], "window": {"type": "session", "gap": "20s"}, "metrics": METRICS},
            {
                "name": "again",
                "groupBy": ["k"],
                "window": {"type": "tumbling", "size": "1m"},
                "latePolicy": "reopen",
                "metrics": METRICS,
            },
        ],
        "anomalies": [
            {"name": "spike", "aggregation": "minutes", "metric": "total", "detector": WATCHED},
            {"name": "respike", "aggregation": "again", "metric": "total", "detector": WATCHED},
            {"name": "single", "field": "v", "groupBy": ["k"], "detector": WATCHED},
        ],
        "events": {"store": True},
        "results": {"publish": False},
    }
)
CONFIG = PipelineConfig(
    namespace="tests", name="crashes", generation=1, spec=SPEC,
    aggregations=tuple(AggregationRef(name=a.name) for a in SPEC.aggregations),
)  # fmt: skip


class Died(Exception):
    """The processor has crashed."""


@dataclass
class Fuse:
    """Closes a processor's connection before its n-th statement.

    Attributes:
        left: the number of statements until the crash. 0 means no crash.
    """

    left: int

    def burn(self, connection: psycopg.Connection[Any]) -> None:
        self.left -= 1
        if self.left == 0:
            connection.close()
            raise Died


def fused(url: str, fuse: Fuse) -> psycopg.Connection[Any]:
    """Return a connection that the fuse closes before a certain statement."""

    class Plain(psycopg.Cursor[Any]):
        def execute(self, *args: Any, **kwargs: Any) -> Any:
            fuse.burn(self.connection)
            return super().execute(*args, **kwargs)

        def executemany(self, *args: Any, **kwargs: Any) -> None:
            fuse.burn(self.connection)
            super().executemany(*args, **kwargs)

        def copy(self, *args: Any, **kwargs: Any) -> Any:
            fuse.burn(self.connection)
            return super().copy(*args, **kwargs)

    class Named(psycopg.ServerCursor[Any]):
        def execute(self, *args: Any, **kwargs: Any) -> Any:
            fuse.burn(self.connection)
            return super().execute(*args, **kwargs)

    connection = psycopg.connect(url, autocommit=True, options="-c TimeZone=UTC")
    connection.cursor_factory, connection.server_cursor_factory = Plain, Named
    return connection


def make_batches() -> list[list[RawRecord]]:
    """Return batches of two partitions. The third has late events, a link of two sessions and an invalid record."""
    offsets = [0, 0]

    def record(p: int, body: bytes) -> RawRecord:
        offsets[p] += 1
        return RawRecord(p, offsets[p] - 1, body)

    def sale(p: int, second: float, k: str | None, v: float) -> RawRecord:
        return record(p, json.dumps({"ts": BASE + round(second * 1000), "k": k, "v": v}).encode())

    first = [sale(n % 2, n * 12.0, "ab"[n // 2 % 2], 10.0 + n % 3) for n in range(40)]
    second = [sale(n % 2, 480 + n * 9.0, "ab"[n // 2 % 2], 10.0 + n % 3 + 500 * (n == 9)) for n in range(20)]
    late = [sale(0, 30.0, "a", 1.0), sale(1, 90.0, None, 2.0), sale(0, 661.0, "b", 3.0), record(1, b"not JSON")]
    third = [sale(n % 2, 700 + n * 11.0, "ab"[n % 2], 12.0) for n in range(10)]
    return [first, second, late, third]


class Processor:
    """A new processor that runs its loop and its keeper in turn on a new connection."""

    def __init__(self, url: str, database: Database, fuse: Fuse) -> None:
        self.connection = fused(url, fuse)
        self._reader = BatchReader(SPEC)
        stores = database.aggregations(self.connection)
        self._committer = Committer(self.connection, database, stores, CONFIG)
        self._closer = Closer(database, stores, CONFIG)
        self._scanners = [
            (store, Scanner(database, store, [r for r in SPEC.anomalies if r.aggregation == store.name]))
            for store in stores
            if store.name in ("minutes", "again")
        ]
        self._schema = database.schema

    def run(self, batches: list[list[RawRecord]]) -> None:
        """Commit the batches from the stored positions on, then close windows and scan them after each batch."""
        for batch in batches:
            stored = self.connection.execute(f"SELECT partition, next_offset FROM {self._schema}._offsets").fetchall()
            at = dict(stored)
            if any(record.o >= at[record.p] for record in batch):
                assert all(record.o >= at[record.p] for record in batch), "a batch is stored completely or not at all"
                positions = {p: Position(offset, 0) for p, offset in at.items()}
                self._committer.commit(self._reader.read(batch, BASE + 86_400_000), positions)
            # Closing belongs to the latest stored batch. A later batch is stored only after these steps.
            if all(max(r.o for r in batch if r.p == p) + 1 == self._next(p) for p in (0, 1)):
                closed = self._closer.run(self.connection).closed_until
                for store, scanner in self._scanners:
                    until = closed[store.name]
                    assert until is not None
                    for _ in range(3):
                        scanner.rescore(self.connection, until)
                        scanner.run(self.connection, until)

    def _next(self, partition: int) -> int:
        query = f"SELECT next_offset FROM {self._schema}._offsets WHERE partition = %s"
        row = self.connection.execute(query, (partition,)).fetchone()
        assert row is not None
        return int(row[0])


class Stage:
    """Runs processors on the pipeline's tables, which are emptied before each run."""

    def __init__(self, servers: Any, connection: psycopg.Connection[Any], database: Database) -> None:
        self._url, self._connection, self._database = servers.postgres.url, connection, database

    def run(self, statements: int) -> tuple[dict[str, list[str]], bool]:
        """Process all batches with one crash before a statement. Return the stored rows, and if the crash happened."""
        self._wipe()
        batches, fuse = make_batches(), Fuse(statements)
        died = False
        while True:
            processor = None
            try:
                processor = Processor(self._url, self._database, fuse)
                processor.run(batches)
                break
            except Died:
                died = True
            finally:
                if processor is not None:
                    processor.connection.close()
        return self._stored(), died

    def _wipe(self) -> None:
        schema = self._database.schema
        tables = [f"{a.name}_v1" for a in SPEC.aggregations]
        tables += ["_events", "_dead_letters", "_detectors", "_detector_history", "_corrections", "_anomalies", "_kept"]
        self._connection.execute(f"TRUNCATE {', '.join(f'{schema}.{table}' for table in tables)} RESTART IDENTITY")
        self._connection.execute(
            f"UPDATE {schema}._aggregations SET closed_until = NULL, scanned_until = NULL, rev = 0, late_dead = 0,"
            " late_dropped = 0"
        )
        self._connection.execute(
            f"UPDATE {schema}._offsets SET topic_id = 'x', epoch = 0, next_offset = 0, max_event_time = NULL,"
            " suspects = '{}', consumed = 0, filtered = 0, invalid = 0"
        )
        self._connection.execute(f"DELETE FROM {schema}._readers")
        self._connection.execute(f"INSERT INTO {schema}._readers (reader) VALUES ('live')")

    def _stored(self) -> dict[str, list[str]]:
        columns_of = {f"{a.name}_v1": "*" for a in SPEC.aggregations} | {
            "_events": "*", "_corrections": "*", "_detectors": "*", "_detector_history": "*",
            "_offsets": "partition, next_offset, max_event_time, consumed, filtered, invalid",
            "_readers": "watermark",
            "_aggregations": "name, closed_until, scanned_until, rev, late_dead, late_dropped",
            "_kept": "kind, place, rows, bytes, bare, counted",
            "_dead_letters": 'partition, "offset", aggregation, reason, windows',
            "_anomalies": 'anomaly, group_key, window_start, value, score, severity, revision, partition, "offset"',
        }  # fmt: skip
        stored = {}
        for table, columns in columns_of.items():
            query = f"SELECT r::text FROM (SELECT {columns} FROM {self._database.schema}.{table}) AS r"
            stored[table] = sorted(row for (row,) in self._connection.execute(query))
        return stored


@pytest.fixture
def stage(servers: Any, make_schema: Callable[..., Any]) -> Stage:
    return Stage(servers, *make_schema(CONFIG))


def test_a_crash_before_any_statement_leads_to_the_same_tables(stage: Stage) -> None:
    """The statements are those of commits, of closing windows and of detectors."""
    expected, died = stage.run(0)
    assert not died
    assert {row.strip("()").split(",")[0] for row in expected["_anomalies"]} == {"spike", "respike", "single"}
    assert {reason for reason in ("late", "not_json") for row in expected["_dead_letters"] if reason in row} == {
        "late",
        "not_json",
    }
    number = random.randrange(EVERY) + 1 - EVERY
    while died or number <= 0:
        number += EVERY
        stored, died = stage.run(number)
        for table, rows in expected.items():
            assert stored[table] == rows, (number, table)
    assert number > 150
