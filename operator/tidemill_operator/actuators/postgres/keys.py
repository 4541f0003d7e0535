"""Add missing columns to the keys of tables that an earlier version of Tidemill created."""

from __future__ import annotations

from psycopg import sql

from tidemill_operator.actuators.postgres.session import Session
from tidemill_operator.plan.live import LiveSchema
from tidemill_operator.plan.model import Schema
from tidemill_operator.plan.postgres.sql import replace_key

_KEYS = """
SELECT c.relname, k.conname, array_agg(a.attname::text)
  FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid JOIN pg_namespace n ON n.oid = c.relnamespace
  JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = ANY(k.conkey)
 WHERE n.nspname = %s AND c.relname = ANY(%s) AND k.contype IN ('p', 'u') AND k.conparentid = 0
 GROUP BY 1, 2
"""


def widen_keys(session: Session, schema: Schema, live: LiveSchema | None) -> None:
    """Add missing columns to the keys of tables if one Kafka record may contain several events."""
    tables = {table.name: table for table in schema.tables if table.added_key_columns}
    if live is None or not schema.explodes:
        return
    for name, key, columns in session.rows(_KEYS, (schema.name, list(tables))):
        # Keep keys that consist only of the identity column `id`.
        if columns != ["id"] and not set(tables[name].added_key_columns) <= set(columns):
            session.write("{}", sql.SQL(replace_key(schema.name, tables[name], key)))
