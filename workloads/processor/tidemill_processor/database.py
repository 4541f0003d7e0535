"""Connects a processor to its pipeline's schema in Postgres."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql

from tidemill_chassis.postgres import KEEPALIVE, MARGIN_SECONDS
from tidemill_contract.expressions.compiler import derived_types
from tidemill_contract.functions.fill_history import FillHistory, mask_incomplete_metrics
from tidemill_contract.functions.partials import AggregationLayout, build_layout, field_types, quote
from tidemill_contract.resource.amounts import parse_bytes
from tidemill_contract.resource.spec import AggregationSpec
from tidemill_contract.runtime import PipelineConfig, WorkloadSettings
from tidemill_contract.tables import aggregations, generation
from tidemill_contract.tables.quotas import ANOMALIES, DEAD_LETTERS, quota_of
from tidemill_contract.tables.readers import LIVE
from tidemill_processor.connection import WriterConnection

CONNECT_SECONDS = 5.0


@dataclass(frozen=True)
class AggregationStore:
    """A version of an aggregation, as registered in the table `_aggregations`.

    `dedupe_reader` is the name under which the version's event ids are stored (see `merge/dedupe`).
    """

    id: int
    spec: AggregationSpec
    version: int
    table: str
    partition_days: int
    layout: AggregationLayout
    since: int
    dedupe_reader: str = LIVE

    @property
    def name(self) -> str:
        """The aggregation's name."""
        return self.spec.name


class Database:
    """Opens connections with the processor's login.

    Attributes:
        reader: the name under which positions are stored (the name of a replay, or else `live`).
        schema: the quoted name of the pipeline's schema.
        quotas: the quotas in bytes for dead letters and for anomalies.
    """

    def __init__(self, settings: WorkloadSettings, config: PipelineConfig, timeout_seconds: float) -> None:
        self._settings = settings
        self._config = config
        self._timeout = timeout_seconds
        self.pipeline = config.name
        self.schema = quote(config.schema_name)
        self.reader = settings.reader
        self.quotas = {kind: parse_bytes(quota_of(config.spec, kind)) for kind in (DEAD_LETTERS, ANOMALIES)}

    def probe(self, seconds: float) -> None:
        """Raise an error if Postgres does not answer within `seconds`.

        Raises:
            psycopg.OperationalError: Postgres cannot be reached or refuses the login.
        """
        with self.connect(seconds) as connection:
            connection.answer_seconds = seconds
            connection.execute("SELECT 1")

    def connect(self, seconds: float | None = None) -> WriterConnection:
        """Open a connection in autocommit mode and UTC.

        Raises:
            psycopg.OperationalError: Postgres cannot be reached or refuses the login.
        """
        login = self._settings.credentials(self._config.name, "writer")
        statement_ms = int(self._timeout * 1000)
        connection = WriterConnection.connect(
            host=self._settings.postgres_host,
            port=self._settings.postgres_port,
            dbname=self._settings.postgres_database,
            **self._settings.postgres_tls,
            user=login.user,
            password=login.password,
            autocommit=True,
            connect_timeout=max(2, int(seconds or min(self._timeout, CONNECT_SECONDS))),
            **KEEPALIVE,
            application_name=f"tidemill-processor/{self._config.name}",
            # JIT is off, because compiling the long merge expressions takes longer than interpreting them.
            options=f"-c TimeZone=UTC -c jit=off -c statement_timeout={statement_ms}"
            f" -c idle_in_transaction_session_timeout=10000 -c lock_timeout={statement_ms}"
            " -c client_min_messages=warning",
        )
        connection.answer_seconds = self._timeout + MARGIN_SECONDS
        return connection

    def aggregations(self, connection: psycopg.Connection[tuple[Any, ...]]) -> list[AggregationStore]:
        """Return the aggregation versions that this process writes, ordered by id.

        Raises:
            LookupError: the schema has no row for a version, because the operator has not written it yet.
        """
        versions = self._versions(connection)
        if self.reader != LIVE:
            filled = [store for reader, store in versions if reader == self.reader]
            if not filled:
                raise LookupError(f"{self.schema}._aggregations has no version that {self.reader} fills")
            return filled
        stores = {(store.name, store.version): store for _, store in versions}
        for aggregation in self._config.spec.aggregations:
            version = self._config.version(aggregation.name)
            if (aggregation.name, version) not in stores:
                raise LookupError(
                    f"{self.schema}._aggregations has no row for {aggregation.name} version {version};"
                    " the operator writes it: see the pipeline's condition SchemaReady"
                )
        return [store for store in stores.values() if store.version == self._config.version(store.name)]

    def aggregations_by_id(
        self, connection: psycopg.Connection[tuple[Any, ...]], wanted: Collection[int]
    ) -> dict[int, AggregationStore]:
        """Return the aggregation versions with an id in `wanted`, by id. Missing versions are left out."""
        return {store.id: store for _, store in self._versions(connection) if store.id in wanted}

    def _versions(self, connection: psycopg.Connection[tuple[Any, ...]]) -> list[tuple[str, AggregationStore]]:
        spec = self._config.spec
        types = field_types(spec, derived_types(spec))
        specs = {aggregation.name: aggregation for aggregation in spec.aggregations}
        versions = []
        rows = connection.execute(aggregations.versions(self.schema))
        for name, reader, dedupe_reader, version, id_, table, days, *history_columns in rows:
            if (aggregation := specs.get(name)) is None:
                continue
            history, layout = FillHistory.read(*history_columns), build_layout(aggregation, types)
            since = history.writer_layout_number([p.column for p in layout.partials])
            store = AggregationStore(
                id_, aggregation, version, table, days, mask_incomplete_metrics(layout, history), since, dedupe_reader
            )
            versions.append((reader, store))
        return versions

    def newer_generation(self, connection: psycopg.Connection[tuple[Any, ...]]) -> int | None:
        """Return the generation (number) of a newer configuration in Postgres. Without a newer one, return None."""
        row = connection.execute(generation.read(self.schema)).fetchone()
        return row[0] if row and row[0] > self._config.generation else None

    def qualified(self, table: str) -> str:
        """Return the quoted name of a table with its schema."""
        return f"{self.schema}.{quote(table)}"

    def lock_sql(self, aggregation_id: int) -> sql.SQL:
        """Return the statement that locks an aggregation version until the end of the transaction."""
        schema = checked_literal(self._config.schema_name)
        return sql.SQL(f"SELECT pg_advisory_xact_lock(hashtext('{schema}'), {int(aggregation_id)})")


def checked_literal(name: str) -> str:
    """Return a validated name for use in an SQL string literal."""
    if "'" in name or "\\" in name:
        raise ValueError(f"not a name: {name!r}")
    return name
