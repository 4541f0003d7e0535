"""The pipeline's schema on a real Postgres, which the operator changes, and processors of each spec."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest

from fill_history.model import BASE, MINUTE, OWNER, Model, Record, config
from tidemill_api.catalog import PipelineModel
from tidemill_api.query.aggregate import parse_query
from tidemill_api.query.parameters import Parameters
from tidemill_api.query.selection import Binder
from tidemill_api.query.sql import statement
from tidemill_contract.functions.fill_history import FillHistory
from tidemill_contract.runtime import PipelineConfig, PostgresCredentials, WorkloadSettings
from tidemill_contract.times import rfc3339, rfc3339_ms
from tidemill_operator.actuators.base import PipelineSecrets
from tidemill_operator.actuators.postgres.schema import PostgresSchemas
from tidemill_operator.outcome import Rank
from tidemill_operator.plan.live import Owner
from tidemill_operator.plan.postgres.schema import desired_schema
from tidemill_processor.batches.reader import BatchReader
from tidemill_processor.database import Database
from tidemill_processor.transaction import Committer, Position, Superseded
from tidemill_processor.windows.reader import WindowReader

Answers = dict[tuple[str, ...], list[tuple[str, int, int]]]


@dataclass(frozen=True)
class Writer:
    """A processor of the spec with this number."""

    number: int
    config: PipelineConfig
    wanted: dict[str, list[str]]
    connection: psycopg.Connection[Any]
    committer: Committer


class Stage:
    """The pipeline's schema, its model, and a processor of every spec so far."""

    def __init__(self, servers: Any) -> None:
        self.servers, self.model = servers, Model()
        self.admin = self.connect()
        self.admin.execute('DROP SCHEMA IF EXISTS "tests__feeds" CASCADE')
        self.number, self.offset = 0, 0
        self.wanted: dict[str, list[str]] = {}
        self.writers: list[Writer] = []

    def connect(self) -> psycopg.Connection[Any]:
        return psycopg.connect(self.servers.postgres.url, autocommit=True, options="-c TimeZone=UTC")

    def plan(self, wanted: dict[str, list[str]]) -> None:
        """Apply the next generation, and start its processor."""
        self.number += 1
        now = config(self.number, wanted)
        self.ensure(now, OWNER)
        assert self.ensure(now, OWNER) == 0, "a second pass changes nothing"
        if self.number == 1:
            self.admin.execute("UPDATE \"tests__feeds\"._offsets SET topic_id = 'x', next_offset = 0")
        self.model.plan(self.number, wanted)
        self.wanted = wanted
        self.start(now)

    def ensure(self, wanted: PipelineConfig, owner: Owner, *, adopt: bool = False) -> int:
        """Let the operator create or change the schema; return the number of changes."""
        schema = desired_schema(wanted)
        logins = PipelineSecrets(
            PostgresCredentials(user=schema.writer, password="w"), PostgresCredentials(user=schema.reader, password="r")
        )
        actuator = PostgresSchemas(self.servers.postgres)
        (outcome,) = actuator.ensure(schema, owner=owner, secrets=logins, adopt=adopt)
        assert outcome.rank == Rank.DONE, outcome
        return outcome.changed

    def start(self, now: PipelineConfig) -> None:
        """Start a processor with this config."""
        connection, database = self.connect(), Database(WorkloadSettings(), now, 10)
        committer = Committer(connection, database, database.aggregations(connection), now)
        self.writers.append(Writer(self.number, now, self.wanted, connection, committer))

    def commit(self, events: list[tuple[int, str, float | None]], *, age: int = 0) -> None:
        """Commit events with the processor that is `age` specs older than the newest and has not noticed it."""
        writer = self.writers[max(0, len(self.writers) - 1 - age)]
        records = [Record(self.offset + i, *event) for i, event in enumerate(events)]
        batch = BatchReader(writer.config.spec).read(records, BASE + 86_400_000)
        at = {0: Position(self.offset, 0)}
        if writer.number < self.number:
            with pytest.raises(Superseded):
                writer.committer.commit(batch, at)
        # The processor reads the generation a moment before the operator raises it.
        self._generation(writer.number)
        writer.committer.commit(batch, at)
        self._generation(self.number)
        self.offset += len(records)
        for record in records:
            self.model.write(writer.number, writer.wanted, record)

    def _generation(self, number: int) -> None:
        self.admin.execute('UPDATE "tests__feeds"._generation SET generation = %s', (number,))

    def close(self, until: int) -> None:
        """Close windows of all current aggregations that end by this time."""
        for name in [name for name, metrics in self.wanted.items() if metrics]:
            closed = self.model.closed[name]
            self.model.closed[name] = until if closed is None else max(until, closed)
            self.admin.execute(
                'UPDATE "tests__feeds"._aggregations SET closed_until = %s WHERE name = %s',
                (self.model.closed[name], name),
            )

    def end(self) -> None:
        for writer in self.writers:
            writer.connection.close()
        self.admin.close()

    def verify(self) -> None:
        """Assert that the processor's windows and the API's windows and roll-ups equal the model."""
        now = self.writers[-1].config
        database = Database(WorkloadSettings(), now, 10)
        for store in database.aggregations(self.admin):
            name, rows, windows = store.name, self.model.rows[store.name], self.model.windows(store.name)
            with self.admin.transaction():
                read = list(WindowReader(database, store).read(self.admin, BASE - 60 * MINUTE, BASE + 60 * MINUTE))
            expected = {(k, rfc3339_ms(start)): keys for (k, start), keys in windows.items()}
            self._compare(name, {(row["k"], row["window_start"]): row for row in read}, expected, "results")
            self._compare(name, self.ask(name, "limit=10000"), expected, "API")
            totals: Answers = defaultdict(list)
            buckets: Answers = defaultdict(list)
            everything: Answers = defaultdict(list)
            for (_, start), keys in windows.items():
                totals[rfc3339_ms(start),] += keys
            for key in rows:
                buckets[key[0], rfc3339_ms(key[1] // (2 * MINUTE) * 2 * MINUTE)].append(key)
                everything[()].append(key)
            self._compare(name, self.ask(name, "group_by="), totals, "fewer groups")
            self._compare(name, self.ask(name, "granularity=2m"), buckets, "coarser time")
            self._compare(name, self.ask(name, "granularity=all&group_by="), everything, "everything")

    def ask(self, name: str, text: str = "") -> dict[Any, dict[str, Any]]:
        """Return the API's answer to a query, by group and start of the window."""
        (row,) = self.admin.execute(
            'SELECT layout, fed FROM "tests__feeds"._aggregations WHERE name = %s', (name,)
        ).fetchall()
        model = PipelineModel(self.writers[-1].config).aggregation(name).mask_incomplete(FillHistory.read(*row))
        query, binder = parse_query(model, Parameters.from_query(text.encode())), Binder()
        rows = self.admin.execute(statement(query, binder, None), binder.values).fetchall()
        answer = {}
        for values in rows:
            row = dict(zip((c.name for c in query.columns), values, strict=True))
            start = () if "granularity=all" in text else (rfc3339(row["window_start"]),)
            answer[(row["k"], *start) if "k" in row else start] = row
        return answer

    def _compare(self, name: str, got: dict[Any, Any], want: dict[Any, list[tuple[str, int, int]]], how: str) -> None:
        assert set(want) == set(got), (name, how)
        for key, keys in want.items():
            for metric in self.wanted[name]:
                expected, value = self.model.answer(name, metric, keys), got[key][metric]
                same = expected == value or (
                    None not in (expected, value) and math.isclose(expected, value, rel_tol=1e-9, abs_tol=1e-9)
                )
                assert same, (name, how, key, metric, expected, value)


@contextmanager
def staged(servers: Any) -> Iterator[Stage]:
    stage = Stage(servers)
    try:
        yield stage
    finally:
        stage.end()
