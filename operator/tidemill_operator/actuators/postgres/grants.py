"""Make the privileges in a schema match the plan."""

from __future__ import annotations

import re
from typing import NamedTuple

from psycopg import sql

from tidemill_contract import names
from tidemill_operator.actuators.postgres.session import Session
from tidemill_operator.plan.model import Schema

PUBLIC = ""


class Grant(NamedTuple):
    """A privilege on a SCHEMA, TABLE or FUNCTION.

    Attributes:
        column: column to which the privilege is limited, or empty.
    """

    kind: str
    thing: str
    column: str
    role: str
    privilege: str


def parse_privileges(text: str) -> set[tuple[str, str]]:
    """Parse a list of privileges into pairs of privilege and column.

    For example, `SELECT, UPDATE (a, b)` gives {("SELECT", ""), ("UPDATE", "a"), ("UPDATE", "b")}.
    """
    privileges = set()
    for privilege, columns in re.findall(r"([A-Z]+)(?:\s*\(([^)]*)\))?", text):
        for column in columns.split(",") if columns else [""]:
            privileges.add((privilege, column.strip().strip('"')))
    return privileges


def wanted_grants(schema: Schema) -> set[Grant]:
    """Return the privileges that the writer and the reader should have."""
    grants = {Grant("SCHEMA", schema.name, "", role, "USAGE") for role in (schema.writer, schema.reader)}
    for table in schema.tables:
        for role, text in ((schema.writer, table.writer_privileges), (schema.reader, table.reader_privileges)):
            grants |= {Grant("TABLE", table.name, column, role, what) for what, column in parse_privileges(text)}
    return grants | {Grant("FUNCTION", name, "", schema.writer, "EXECUTE") for name, _ in schema.functions}


def ensure_grants(session: Session, schema: Schema) -> None:
    """Make the privileges match the plan, without changing privileges of other roles."""
    wanted, live = wanted_grants(schema), _observe(session, schema)
    for grant in sorted(wanted - live):
        session.write(f"GRANT {{}} ON {grant.kind} {{}} TO {{}}", *_parts(schema, grant))
    for grant in sorted(live - wanted):
        session.write(f"REVOKE {{}} ON {grant.kind} {{}} FROM {{}}", *_parts(schema, grant))


def _parts(schema: Schema, grant: Grant) -> tuple[sql.Composable, ...]:
    column = sql.SQL(" ({})").format(sql.Identifier(grant.column)) if grant.column else sql.SQL("")
    thing = sql.Identifier(grant.thing) if grant.kind == "SCHEMA" else sql.Identifier(schema.name, grant.thing)
    role = sql.SQL("PUBLIC") if grant.role == PUBLIC else sql.Identifier(grant.role)
    return sql.SQL(grant.privilege) + column, thing, role


_QUERY = """
WITH acls AS (
  SELECT 'SCHEMA' AS kind, nspname AS thing, '' AS col, coalesce(nspacl, acldefault('n', nspowner)) AS acl
    FROM pg_namespace WHERE nspname = %(schema)s
  UNION ALL
  SELECT 'TABLE', c.relname, '', c.relacl FROM pg_class c WHERE c.relnamespace = %(oid)s AND c.relname = ANY(%(tables)s)
  UNION ALL
  SELECT 'TABLE', c.relname, a.attname, a.attacl FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
    WHERE c.relnamespace = %(oid)s AND c.relname = ANY(%(tables)s) AND a.attacl IS NOT NULL AND NOT a.attisdropped
  UNION ALL
  SELECT 'FUNCTION', p.proname, '', coalesce(p.proacl, acldefault('f', p.proowner))
    FROM pg_proc p WHERE p.pronamespace = %(oid)s AND p.proname = ANY(%(functions)s)
)
SELECT kind, thing, col, coalesce(r.rolname, ''), e.privilege_type
  FROM acls, aclexplode(acl) e LEFT JOIN pg_roles r ON r.oid = e.grantee
 WHERE e.grantee = 0 OR r.rolname = ANY(%(roles)s)
"""


def _observe(session: Session, schema: Schema) -> set[Grant]:
    ((oid,),) = session.rows("SELECT oid FROM pg_namespace WHERE nspname = %s", (schema.name,))
    rows = session.rows(
        _QUERY,
        {
            "schema": schema.name,
            "oid": oid,
            "tables": [table.name for table in schema.tables],
            "functions": [name for name, _ in schema.functions],
            # Include the logins, so that privileges granted directly to a login are revoked.
            "roles": [role for group in (schema.writer, schema.reader) for role in (group, *names.login_roles(group))],
        },
    )
    return {Grant(*row) for row in rows}
