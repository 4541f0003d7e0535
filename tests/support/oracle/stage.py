"""A pipeline without processes, for the fuzz: code of processor and API on a real Postgres, with random batches.

It replaces `platform.Running` and needs a tenth of the time. It has no Kafka, no processes, no replays and no operator.
"""

from __future__ import annotations

import asyncio
import copy
import json
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psycopg

from kafka_records import RawRecord
from oracle.events import Event
from oracle.platform import Stuck
from oracle.queries import Query
from tidemill_api.catalog import PipelineModel
from tidemill_api.formats.json import page_body
from tidemill_api.formats.rows import RowEncoder
from tidemill_api.query import sql as aggregate_sql
from tidemill_api.query.aggregate import parse_query
from tidemill_api.query.answers import read_state, read_windows
from tidemill_api.query.parameters import Parameters
from tidemill_chassis.web.problems import Problem
from tidemill_contract.functions.partials import quote
from tidemill_contract.resource.spec import PipelineSpec
from tidemill_contract.runtime import AggregationRef, PipelineConfig, PostgresCredentials, WorkloadSettings
from tidemill_operator.actuators.base import PipelineSecrets
from tidemill_operator.actuators.postgres.schema import PostgresSchemas
from tidemill_operator.outcome import Rank
from tidemill_operator.plan.live import Owner
from tidemill_operator.plan.postgres.schema import desired_schema
from tidemill_processor.batches.reader import BatchReader
from tidemill_processor.database import Database
from tidemill_processor.time.closing import Closer
from tidemill_processor.transaction import Committer, Fenced, Position

_NOW_MS = 1_790_000_000_000


class Stage:
    """One pipeline, with the methods of `platform.Running`."""

    replays = False

    def __init__(self, servers: Any, _folder: Path, document: Mapping[str, Any]) -> None:
        metadata = document["metadata"]
        self.namespace, self.name, self._uid = metadata["namespace"], metadata["name"], metadata["uid"]
        self._at = servers.postgres
        self._generation, self._crashes = 0, 0
        login = {"dbname": self._at.database, "user": self._at.user, "password": self._at.password}
        self._login = {**login, "host": self._at.host, "port": self._at.port, "options": "-c TimeZone=UTC"}
        self._connection = psycopg.connect(**self._login, autocommit=True)
        self._runner = asyncio.Runner()
        self._reading: psycopg.AsyncConnection[Any] = self._runner.run(
            psycopg.AsyncConnection.connect(**self._login, autocommit=True)
        )
        partitions = document["spec"]["source"]["topic"]["partitions"]
        self._logs: dict[int, list[RawRecord]] = {p: [] for p in range(partitions)}
        self._positions = {p: Position(0, 0) for p in range(partitions)}
        self._rnd = random.Random(self.name)
        self.edit(document["spec"], {item["name"]: 1 for item in document["spec"]["aggregations"]})
        self._connection.execute(f"UPDATE {self._schema}._offsets SET topic_id = 'x', next_offset = 0")

    def close(self) -> None:
        """Delete the schema, and close the connections."""
        self._connection.execute(f"DROP SCHEMA {self._schema} CASCADE")
        self._connection.close()
        self._runner.run(self._reading.close())
        self._runner.close()

    def sql(self, text: str) -> list[tuple[Any, ...]]:
        """Return the rows of a query, in which `{s}` stands for the schema."""
        return self._connection.execute(text.replace("{s}", self._schema)).fetchall()

    def edit(self, spec: Mapping[str, Any], versions: Mapping[str, int]) -> None:
        """Apply a spec. `versions` are the versions that its aggregations have afterwards."""
        self._generation += 1
        parsed = PipelineSpec.model_validate(copy.deepcopy(dict(spec)))
        refs = tuple(AggregationRef(name=name, version=version) for name, version in versions.items())
        self._config = PipelineConfig(
            namespace=self.namespace, name=self.name, generation=self._generation, spec=parsed, aggregations=refs
        )
        self._schema = quote(self._config.schema_name)
        schema = desired_schema(self._config)
        secrets = PipelineSecrets(
            PostgresCredentials(user=schema.writer, password="w"), PostgresCredentials(user=schema.reader, password="r")
        )
        owner = Owner(self.namespace, self.name, self._uid, "local")
        (outcome,) = PostgresSchemas(self._at).ensure(schema, owner=owner, secrets=secrets)
        if outcome.rank != Rank.DONE:
            raise Stuck(f"the schema cannot be changed: {outcome}")
        self._versions = dict(versions)
        self._model = PipelineModel(self._config)
        self._start()

    def versions(self) -> dict[str, int]:
        """Return the current version of each aggregation."""
        return dict(self._versions)

    def _start(self) -> None:
        """Start with an empty state in memory and a new connection, as a new process does."""
        self._connection.close()
        self._connection = psycopg.connect(**self._login, autocommit=True)
        database = Database(WorkloadSettings(), self._config, 10)
        stores = database.aggregations(self._connection)
        self._committer = Committer(self._connection, database, stores, self._config)
        self._closer = Closer(database, stores, self._config)
        self._reader = BatchReader(self._config.spec)

    def replay(self, aggregations: Sequence[str], meanwhile: Callable[[], None]) -> None:
        """Replays are not supported."""
        raise NotImplementedError

    def kill(self, _rnd: random.Random) -> bool:
        """Roll back the next batch, and let a new process commit it."""
        self._crashes += 1
        return True

    def reset_group(self) -> None:
        """Commit a batch from the beginning of the topic again; the processor must refuse it."""
        stale = {p: Position(0, 0) for p in self._positions}
        batch = self._next(stale)
        if batch and any(position.next_offset for position in self._positions.values()):
            try:
                self._committer.commit(self._reader.read(batch, _NOW_MS), stale)
            except Fenced:
                return
            if any(self._positions[record.p].next_offset for record in batch):
                raise Stuck("a batch from the beginning was committed again")

    def send(self, events: Sequence[Event]) -> None:
        """Commit records in batches of random sizes."""
        for event in events:
            self._logs[event.partition].append(RawRecord(event.partition, event.offset, event.raw))
        while batch := self._next(self._positions):
            read = self._reader.read(batch, _NOW_MS)
            if self._crashes:
                self._crashes -= 1
                with self._connection.transaction() as transaction:
                    self._committer.commit(read, self._positions)
                    raise psycopg.Rollback(transaction)
                self._start()
                continue
            self._positions.update(self._committer.commit(read, self._positions).positions)
            if self._rnd.random() < 0.3:
                self._closer.run(self._connection)

    def _next(self, positions: Mapping[int, Position]) -> list[RawRecord]:
        """Return some of the remaining records, with partitions in random order."""
        size = self._rnd.choice([1, 7, 60, 500])
        left = {p: log[positions[p].next_offset :][:size] for p, log in self._logs.items()}
        batch: list[RawRecord] = []
        while (waiting := [p for p, rest in left.items() if rest]) and len(batch) < size:
            batch.append(left[self._rnd.choice(waiting)].pop(0))
        return batch

    def await_counted(self, number: int) -> None:
        """Raise Stuck unless this number of records is consumed."""
        ((consumed,),) = self.sql("SELECT sum(consumed)::bigint FROM {s}._offsets")
        if consumed != number:
            raise Stuck(f"{consumed} of {number} records are consumed")

    def await_closed(self, closed: Mapping[tuple[str, int], int | None]) -> None:
        """Raise Stuck unless windows are closed up to these times, which are given by aggregation and version."""
        self._closer.run(self._connection)
        rows = self.sql("SELECT name, version, closed_until FROM {s}._aggregations")
        actual = {(name, version): until for name, version, until in rows if (name, version) in closed}
        if actual != dict(closed):
            raise Stuck(f"closed until {actual}, expected {closed}")

    def rows(self, aggregation: str, query: Query) -> list[dict[str, Any]]:
        """Read all pages of a query, and return their rows as the API encodes them."""
        rows: list[dict[str, Any]] = []
        parameters = {name: [str(value)] for name, value in query.parameters().items()}
        while True:
            try:
                page = self._runner.run(self._page(aggregation, parameters))
            except (Problem, psycopg.Error) as error:
                raise Stuck(f"{aggregation} {parameters}: {error!r}") from error
            rows += page["data"]
            if page["next_cursor"] is None:
                return rows
            parameters["cursor"] = [page["next_cursor"]]

    async def _page(self, aggregation: str, parameters: Mapping[str, list[str]]) -> dict[str, Any]:
        model = self._model.aggregation(aggregation)
        query = parse_query(model, Parameters(dict(parameters), split=True))
        state = await read_state(self._reading, self._model, aggregation, model.version)
        rows, _ = await read_windows(self._reading, query, state)
        shown, encoder = rows[: query.page.limit], RowEncoder(query.columns)
        more = len(rows) > len(shown)
        cursor = query.page.cursor(aggregate_sql.row_dict(query, shown[-1])) if more else None
        return dict(json.loads(page_body(query.columns, [encoder.record(row) for row in shown], cursor)))
