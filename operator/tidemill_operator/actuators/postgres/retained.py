"""List Tidemill's schemas in a database, with their owners."""

from __future__ import annotations

import json

from tidemill_operator.actuators.postgres.session import NoDatabase, open_session
from tidemill_operator.addresses import PostgresAddress
from tidemill_operator.plan.live import Owner


def owned_schemas(address: PostgresAddress) -> dict[str, Owner]:
    """Return the owner of each of Tidemill's schemas.

    Raises:
        TidemillError: Postgres does not answer.
    """
    try:
        with open_session(address, "looking for schemas", read_only=True) as session:
            rows = session.rows("SELECT nspname, obj_description(oid, 'pg_namespace') FROM pg_namespace ORDER BY 1")
    except NoDatabase:
        return {}
    owners = {schema: parse_owner(comment) for schema, comment in rows}
    return {schema: owner for schema, owner in owners.items() if owner is not None}


def parse_owner(comment: str | None) -> Owner | None:
    """Return the owner in a schema's comment, or None."""
    try:
        return Owner(**json.loads(comment or "")["tidemill"])
    except (ValueError, KeyError, TypeError):
        return None
