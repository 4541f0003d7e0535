"""What of a schema's rows somebody else has taken away, as far as it can be seen cheaply. Reads only."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from psycopg import sql

from tidemill_operator.actuators.postgres.session import Session

# The first partition that holds anything ends the look at a table.
_EMPTIED = """
SELECT a.name, a.version FROM {} a
  JOIN pg_class c ON c.relname = a.table_name JOIN pg_namespace n ON n.oid = c.relnamespace AND n.nspname = %s
 WHERE a.rev > 0 AND EXISTS (SELECT FROM pg_inherits i WHERE i.inhparent = c.oid)
   AND NOT EXISTS (SELECT FROM pg_inherits i WHERE i.inhparent = c.oid AND pg_relation_size(i.inhrelid) > 0)"""


def emptied(session: Session, schema: str, columns: Mapping[str, Collection[str]]) -> frozenset[tuple[str, int]]:
    """Versions that batches were merged into, and whose partitions hold nothing at all.

    Args:
        session: any.
        schema: its name.
        columns: of its tables.
    """
    if "rev" not in columns.get("_aggregations", ()):
        return frozenset()
    query = sql.SQL(_EMPTIED).format(sql.Identifier(schema, "_aggregations"))
    return frozenset((name, version) for name, version in session.connection.execute(query, (schema,)).fetchall())


def missing_positions(there: Collection[int]) -> tuple[int, ...]:
    """Partitions without a position: they are made in order from 0 on, and never taken away."""
    return tuple(sorted(set(range(max(there, default=0) + 1)) - set(there)))
