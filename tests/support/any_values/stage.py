"""The tables of the pipeline on a real Postgres, and checks of all answers from them."""

from __future__ import annotations

import json
from typing import Any

import psycopg

from any_values.pipeline import BASE, CONFIG, MINUTE, SPEC, Event, Record
from any_values.right_answers import compare, compare_further, cut, visits
from tidemill_api.catalog import PipelineModel
from tidemill_api.formats.ndjson import NdjsonWriter
from tidemill_api.query.aggregate import parse_query
from tidemill_api.query.parameters import Parameters
from tidemill_api.query.selection import Binder
from tidemill_api.query.sql import statement
from tidemill_processor.batches.reader import BatchReader
from tidemill_processor.database import Database
from tidemill_processor.transaction import Committer, Position
from tidemill_processor.windows.reader import WindowReader

MORE_OF = {"tumbling": "more", "hopping": "more_hopping"}


class Stage:
    """The pipeline's tables, and the records that were committed to them."""

    def __init__(self, connection: psycopg.Connection[Any], database: Database) -> None:
        self.connection, self.database = connection, database
        self.stores = database.aggregations(connection)
        self.committer = Committer(connection, database, self.stores, CONFIG)
        self.reader, self.model = BatchReader(SPEC), PipelineModel(CONFIG)
        self.records: list[Record] = []
        self.position = Position(0, 0)

    def wipe(self) -> Stage:
        """Empty the tables."""
        schema = self.database.schema
        tables = ", ".join(f"{schema}.{store.table}" for store in self.stores)
        self.connection.execute(f"TRUNCATE {tables}, {schema}._dead_letters, {schema}._corrections")
        self.connection.execute(f"UPDATE {schema}._aggregations SET closed_until = NULL")
        self.records = []
        return self

    def commit(self, *events: Event) -> None:
        """Commit these events as one batch."""
        at = self.position.next_offset
        records = [Record(at + n, members) for n, members in enumerate(events)]
        read = self.reader.read(records, BASE + 60 * MINUTE)
        assert not read.dead_letters
        self.position = self.committer.commit(read, {0: self.position}).positions[0]
        self.records += records

    def close(self, until: int) -> None:
        """Close all windows that end by this time."""
        update = f"UPDATE {self.database.schema}._aggregations SET closed_until = greatest(closed_until, %s)"
        self.connection.execute(update, (until,))

    def windows(self, name: str) -> dict[Any, dict[str, Any]]:
        """Return the windows of an aggregation as the results topic has them."""
        store = next(store for store in self.stores if store.name == name)
        with self.connection.transaction():
            rows = list(
                WindowReader(self.database, store).read(self.connection, BASE - 60 * MINUTE, BASE + 60 * MINUTE)
            )
        return {(*(row[group] for group in store.spec.group_by), row["window_start"]): row for row in rows}

    def ask(self, name: str, text: str = "") -> dict[Any, dict[str, Any]]:
        """Return the API's answer to a query of an aggregation."""
        query, binder = parse_query(self.model.aggregation(name), Parameters.from_query(text.encode())), Binder()
        rows = self.connection.execute(statement(query, binder, None), binder.values).fetchall()
        writer = NdjsonWriter(query.columns)
        answers = [json.loads(writer.batch([row])) for row in rows]
        return {(*(row[group] for group in query.group_by), row["window_start"]): row for row in answers}

    def verify(self) -> None:
        """Assert that the windows of results and API are right, also rolled up and filtered."""
        for name, size, hop in (("tumbling", MINUTE, MINUTE), ("hopping", 3 * MINUTE, MINUTE)):
            want = cut(self.records, ("k",), size, hop)
            compare(self.windows(name), want, f"{name} in results")
            compare(self.ask(name), want, f"{name} of the API")
            compare(self.ask(name, "group_by="), cut(self.records, (), size, hop), f"{name} in fewer groups")
            hour = cut(self.records, (), 60 * MINUTE, 60 * MINUTE)
            compare(self.ask(name, "group_by=&granularity=1h"), hour, f"{name} in coarser time")
            for metric in ("v_sum", "v_avg", "v_variance", "v_stddev", "i_sum", "i_avg", "i_variance"):
                filtered = self.ask(name, f"{metric}__gte=0&order=-{metric}&group_by=&metrics={metric}")
                assert all(row[metric] >= 0 for row in filtered.values())
            compare_further(self.windows(MORE_OF[name]), want, f"{name}, further functions in results")
            compare_further(self.ask(MORE_OF[name]), want, f"{name}, further functions of the API")
            compare_further(self.ask(MORE_OF[name], "group_by=&granularity=1h"), hour, f"{name}, further, coarser")
        compare_further(self.windows("more_visits"), visits(self.records), "sessions, further functions")
        compare(self.windows("visits"), visits(self.records), "sessions in results")
        compare(self.ask("visits"), visits(self.records), "sessions of the API")
        compare(self.ask("by_number"), cut(self.records, ("v", "i"), 60 * MINUTE, 60 * MINUTE), "grouped by number")
