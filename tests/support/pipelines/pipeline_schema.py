"""The tables of a pipeline, which the test creates instead of the operator."""

from __future__ import annotations

from typing import Any

import psycopg

from tidemill_contract.functions.partials import quote
from tidemill_contract.runtime import PipelineConfig
from tidemill_operator.plan.postgres.schema import desired_schema


def connect_admin(servers: Any) -> psycopg.Connection[Any]:
    """Connect as the administrator, with the time zone UTC."""
    at = servers.postgres
    return psycopg.connect(
        host=at.host,
        port=at.port,
        dbname=at.database,
        user=at.user,
        password=at.password,
        autocommit=True,
        options="-c TimeZone=UTC",
    )


def create_schema(admin: psycopg.Connection[Any], config: PipelineConfig, *, started: bool) -> None:
    """Create the tables of a pipeline.

    With `started`, all positions are zero, as after a processor took over the partitions. Otherwise they are null.
    """
    desired = desired_schema(config)
    schema = quote(desired.name)
    admin.execute(f"DROP SCHEMA IF EXISTS {schema} CASCADE")
    admin.execute(f"CREATE SCHEMA {schema}")
    for table in desired.tables:
        columns = ", ".join([*(f"{quote(c.name)} {c.definition}" for c in table.columns), *table.constraints])
        kind = (
            f" PARTITION BY {table.partition_by}"
            if table.partition_by
            else f" WITH ({table.storage})"
            if table.storage
            else ""
        )
        admin.execute(f"CREATE TABLE {schema}.{quote(table.name)} ({columns}){kind}")
        for name, definition in table.indexes:
            admin.execute(f"CREATE INDEX {quote(name)} ON {schema}.{quote(table.name)} {definition}")
    for _, text in desired.functions:
        admin.execute(text)
    for row in desired.aggregations:
        admin.execute(
            f"INSERT INTO {schema}._aggregations"
            " (name, version, table_name, reader, shape, partition_days, retention_ms)"
            " VALUES (%s, %s, %s, %s, %s, %s, %s)",
            (row.name, row.version, row.table_name, row.reader, row.shape, row.partition_days, row.retention_ms),
        )
    admin.execute(f"INSERT INTO {schema}._readers (reader) VALUES ('live')")
    admin.execute(f"INSERT INTO {schema}._generation (generation) VALUES (%s)", (desired.generation,))
    at = ("x", 0) if started else (None, None)
    for partition in range(desired.partitions):
        admin.execute(
            f"INSERT INTO {schema}._offsets (reader, partition, topic_id, next_offset) VALUES ('live', %s, %s, %s)",
            (partition, *at),
        )
