"""Convert a planned schema to SQL statements and to a script for people."""

from __future__ import annotations

from collections.abc import Iterator

from tidemill_contract.functions.partials import quote
from tidemill_contract.tables.definition import Column, Table
from tidemill_operator.plan.model import AggregationRow, Schema


def create_table(schema: str, table: Table) -> str:
    """Return the statement that creates a table."""
    parts = [*(f"{quote(column.name)} {column.definition}" for column in table.columns), *table.constraints]
    more = ""
    if table.partition_by:
        more = f" PARTITION BY {table.partition_by}"
    elif table.storage:
        more = f" WITH ({table.storage})"
    inside = ",\n  ".join(parts)
    return f"CREATE TABLE {_name(schema, table)} (\n  {inside}\n){more}"


def add_column(schema: str, table: Table, column: Column) -> str:
    """Return the statement that adds a column to an existing table."""
    return f"ALTER TABLE {_name(schema, table)} ADD COLUMN {quote(column.name)} {column.definition}"


def rename_column(schema: str, table: str, before: str, after: str) -> str:
    """Return the statement that renames a column."""
    return f"ALTER TABLE {quote(schema)}.{quote(table)} RENAME COLUMN {quote(before)} TO {quote(after)}"


def replace_key(schema: str, table: Table, former: str) -> str:
    """Return the statement that replaces a table's key by the planned key."""
    return f"ALTER TABLE {_name(schema, table)} DROP CONSTRAINT {quote(former)}, ADD {table.constraints[0]}"


def create_index(schema: str, table: Table, index: str, definition: str) -> str:
    """Return the statement that creates an index."""
    return f"CREATE INDEX {quote(index)} ON {_name(schema, table)} {definition}"


def script(schema: Schema) -> str:
    """Return a script that creates a schema for existing roles."""
    return "".join(f"{statement.rstrip()};\n" for statement in _statements(schema))


def _statements(schema: Schema) -> Iterator[str]:
    yield f"CREATE SCHEMA {quote(schema.name)} AUTHORIZATION {quote(schema.owner)}"
    yield f"SET ROLE {quote(schema.owner)}"
    yield f"GRANT USAGE ON SCHEMA {quote(schema.name)} TO {quote(schema.writer)}, {quote(schema.reader)}"
    for table in schema.tables:
        yield f"\n{create_table(schema.name, table)}"
        for index, definition in table.indexes:
            yield create_index(schema.name, table, index, definition)
        for role, privileges in ((schema.writer, table.writer_privileges), (schema.reader, table.reader_privileges)):
            if privileges:
                yield f"GRANT {privileges} ON {_name(schema.name, table)} TO {quote(role)}"
    for name, text in schema.functions:
        yield text
        yield f"REVOKE ALL ON FUNCTION {quote(schema.name)}.{quote(name)} FROM PUBLIC"
        yield f"GRANT EXECUTE ON FUNCTION {quote(schema.name)}.{quote(name)} TO {quote(schema.writer)}"
    yield from _rows(schema)
    yield "RESET ROLE"


def _rows(schema: Schema) -> Iterator[str]:
    yield f"\nINSERT INTO {quote(schema.name)}._generation (generation) VALUES ({schema.generation})"
    yield f"INSERT INTO {quote(schema.name)}._readers (reader) VALUES ('live')"
    partitions = f"SELECT 'live', generate_series(0, {schema.partitions - 1})"
    yield f"INSERT INTO {quote(schema.name)}._offsets (reader, partition) {partitions}"
    for slot in schema.slots:
        values = f"{slot.number}, '{slot.topic}', {slot.partition}, {slot.reading}, {slot.added}"
        yield f"INSERT INTO {quote(schema.name)}._slots (slot, topic, partition, reading, added) VALUES ({values})"
    for row in schema.aggregations:
        yield _row(schema.name, row)


def _row(schema: str, row: AggregationRow) -> str:
    values = ", ".join([
        f"'{row.name}', {row.version}, '{row.table_name}', '{row.reader}'",
        "'" + row.shape.replace("'", "''") + "'",
        str(row.partition_days),
        str(row.retention_ms),
    ])  # fmt: skip
    columns = "name, version, table_name, reader, shape, partition_days, retention_ms"
    return f"INSERT INTO {quote(schema)}._aggregations ({columns})\n  VALUES ({values})"


def _name(schema: str, table: Table) -> str:
    return f"{quote(schema)}.{quote(table.name)}"
