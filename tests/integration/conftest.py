"""Fixtures over real servers: schemas of pipelines, and connections to them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from tidemill_contract.partials import quote
from tidemill_contract.runtime import PipelineConfig, WorkloadSettings
from tidemill_operator.plan.schema import desired_schema
from tidemill_processor.database import Database

PipelineSchema = tuple[psycopg.Connection[Any], Database]


@pytest.fixture
def admin(servers: Any) -> Iterator[psycopg.Connection[Any]]:
    """The administrator's connection, in UTC."""
    at = servers.postgres
    with psycopg.connect(
        host=at.host, port=at.port, dbname=at.database, user=at.user, password=at.password, autocommit=True, options="-c TimeZone=UTC"
    ) as connection:
        yield connection


@pytest.fixture
def make_schema(admin: psycopg.Connection[Any]) -> Callable[[PipelineConfig], PipelineSchema]:
    """Makes a pipeline's tables; the positions of its partitions stand at the start."""

    def make(config: PipelineConfig) -> PipelineSchema:
        wanted = desired_schema(config)
        schema = quote(wanted.name)
        admin.execute(f"DROP SCHEMA IF EXISTS {schema} CASCADE")
        admin.execute(f"CREATE SCHEMA {schema}")
        for table in wanted.tables:
            columns = ", ".join([*(f"{quote(c.name)} {c.definition}" for c in table.columns), *table.constraints])
            kind = f" PARTITION BY {table.partition_by}" if table.partition_by else f" WITH ({table.storage})" if table.storage else ""
            admin.execute(f"CREATE TABLE {schema}.{quote(table.name)} ({columns}){kind}")
            for name, definition in table.indexes:
                admin.execute(f"CREATE INDEX {quote(name)} ON {schema}.{quote(table.name)} {definition}")
        for _, text in wanted.functions:
            admin.execute(text)
        for row in wanted.aggregations:
            admin.execute(
                f"INSERT INTO {schema}._aggregations (name, version, table_name, reader, shape, partition_days, retention_ms)"
                " VALUES (%s, %s, %s, %s, %s, %s, %s)",
                (row.name, row.version, row.table_name, row.reader, row.shape, row.partition_days, row.retention_ms),
            )
        admin.execute(f"INSERT INTO {schema}._readers (reader) VALUES ('live')")
        admin.execute(f"INSERT INTO {schema}._generation (generation) VALUES (%s)", (wanted.generation,))
        for partition in range(wanted.partitions):
            admin.execute(
                f"INSERT INTO {schema}._offsets (reader, partition, topic_id, next_offset) VALUES ('live', %s, 'x', 0)", (partition,)
            )
        return admin, Database(WorkloadSettings(), config, 10)

    return make
