"""Detect whether another user deleted rows of a schema."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from psycopg import sql

from tidemill_operator.actuators.postgres.session import Session

# The query is cheap, because only the sizes of table partitions are read.
_EMPTIED = """
SELECT a.name, a.version FROM {} a
  JOIN pg_class c ON c.relname = a.table_name JOIN pg_namespace n ON n.oid = c.relnamespace AND n.nspname = %s
 WHERE a.rev > 0 AND EXISTS (SELECT FROM pg_inherits i WHERE i.inhparent = c.oid)
   AND NOT EXISTS (SELECT FROM pg_inherits i WHERE i.inhparent = c.oid AND pg_relation_size(i.inhrelid) > 0)"""


def find_emptied(session: Session, schema: str, columns: Mapping[str, Collection[str]]) -> frozenset[tuple[str, int]]:
    """Return the (name, version) of aggregations whose tables are empty, although windows were written."""
    if "rev" not in columns.get("_aggregations", ()):
        return frozenset()
    query = sql.SQL(_EMPTIED).format(sql.Identifier(schema, "_aggregations"))
    return frozenset((name, version) for name, version in session.connection.execute(query, (schema,)).fetchall())


def missing_positions(partitions: Collection[int]) -> tuple[int, ...]:
    """Return the partitions without a row in `_offsets`, up to the highest partition with a row."""
    return tuple(sorted(set(range(max(partitions, default=0) + 1)) - set(partitions)))
