"""Manage the roles of a schema: owner, writer, reader and logins.

Writer and reader have two logins each.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from psycopg import sql

from tidemill_contract import names
from tidemill_contract.runtime import PostgresCredentials
from tidemill_operator.actuators.base import PipelineSecrets
from tidemill_operator.actuators.postgres.session import Session
from tidemill_operator.errors import Reason, TidemillError
from tidemill_operator.plan.live import Owner
from tidemill_operator.plan.model import Schema

# If a node is lost, its locks are released within about ten seconds.
_LOST_NODE = {
    "idle_in_transaction_session_timeout": "10s",
    "tcp_keepalives_count": "3",
    "tcp_keepalives_idle": "5",
    "tcp_keepalives_interval": "2",
    "tcp_user_timeout": "10s",
}
WRITER_SETTINGS: Mapping[str, str] = {**_LOST_NODE, "statement_timeout": "60s", "lock_timeout": "30s"}
READER_SETTINGS: Mapping[str, str] = {
    **_LOST_NODE,
    "statement_timeout": "30s",
    "lock_timeout": "5s",
    "default_transaction_read_only": "on",
}
_ATTRIBUTES = ("rolsuper", "rolcreatedb", "rolcreaterole", "rolreplication", "rolbypassrls")


def ensure_roles(session: Session, schema: Schema, *, owner: Owner, secrets: PipelineSecrets, adopt: bool) -> None:
    """Make the roles match the plan, and disable retired logins.

    Raises:
        TidemillError: a role belongs to another owner.
    """
    live = _observe(session, all_roles(schema))
    logins = {login.user: login for login in (secrets.writer, secrets.reader, *secrets.staged)}
    for role in (schema.owner, schema.writer, schema.reader):
        if role not in logins:
            _ensure(session, role, live.get(role), owner=owner, login=None, adopt=adopt)
    for group, settings in ((schema.writer, WRITER_SETTINGS), (schema.reader, READER_SETTINGS)):
        for role in (group, *names.login_roles(group)):
            if role in logins:
                _ensure(session, role, live.get(role), owner=owner, login=logins[role], adopt=adopt)
                _ensure_settings(session, role, live.get(role), settings)
                if role != group and group not in (live.get(role) or {}).get("groups", ()):
                    session.write("GRANT {} TO {}", group, role)
    if secrets.retire_at is None:
        for role in live.keys() - logins.keys():
            if live[role]["login"] and _is_ours(live[role]["mark"], _owner_mark(session, owner)):
                session.write("ALTER ROLE {} NOLOGIN PASSWORD NULL", role)
    _ensure_membership(session, schema.owner)
    _ensure_connect(session, schema)


def role_conflicts(session: Session, schema: Schema, owner: Owner) -> Iterator[TidemillError]:
    """Yield an error for each role that does not belong to `owner`."""
    ours = _owner_mark(session, owner)
    for role, live in sorted(_observe(session, (schema.owner, schema.writer, schema.reader)).items()):
        if not _is_ours(live["mark"], ours):
            yield _foreign_role_error(role, live["mark"])


def end_sessions(session: Session, schema: Schema) -> None:
    """End the sessions of disabled logins, after the transaction that disabled the logins."""
    rows = session.rows(
        "SELECT a.pid, a.usename, pg_has_role(current_user, r.oid, 'USAGE') FROM pg_stat_activity a"
        " JOIN pg_roles r ON r.oid = a.usesysid WHERE r.rolname = ANY(%s) AND NOT r.rolcanlogin",
        (list(all_roles(schema)),),
    )
    for role in {role for _, role, may in rows if not may}:
        session.write("GRANT {} TO CURRENT_USER", role)
    for pid, _, _ in rows:
        session.write("SELECT pg_terminate_backend({})", sql.Literal(pid))


def drop_roles(session: Session, schema: Schema) -> None:
    """Drop all existing roles of a schema. The roles must not own any objects."""
    (database,) = session.rows("SELECT current_database()")[0]
    for role in _observe(session, all_roles(schema)):
        session.write("REVOKE ALL ON DATABASE {} FROM {}", database, role)
        session.write("DROP ROLE {}", role)


def all_roles(schema: Schema) -> tuple[str, ...]:
    """Return all roles that a schema may have."""
    return (
        schema.owner,
        *(role for group in (schema.writer, schema.reader) for role in (group, *names.login_roles(group))),
    )


def _observe(session: Session, roles: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    rows = session.rows(
        "SELECT rolname, rolcanlogin, rolconfig, shobj_description(oid, 'pg_authid'),"
        " ARRAY(SELECT g.rolname FROM pg_auth_members m JOIN pg_roles g ON g.oid = m.roleid WHERE m.member = r.oid),"
        " rolsuper, rolcreatedb, rolcreaterole, rolreplication, rolbypassrls FROM pg_roles r WHERE rolname = ANY(%s)",
        (list(roles),),
    )
    return {
        name: {"login": login, "config": config, "mark": mark, "groups": groups, "powers": any(powers)}
        for name, login, config, mark, groups, *powers in rows
    }


def _ensure(
    session: Session,
    role: str,
    live: dict[str, Any] | None,
    *,
    owner: Owner,
    login: PostgresCredentials | None,
    adopt: bool,
) -> None:
    password = login.password if login is not None else None
    mark = {"tidemill": _owner_mark(session, owner)}
    if password is not None:
        mark["tidemill"]["password"] = hashlib.sha256(password.encode()).hexdigest()
    if live is None:
        session.write("CREATE ROLE {} {}", role, sql.SQL("NOLOGIN" if password is None else "LOGIN"))
    else:
        if not adopt and not _is_ours(live["mark"], mark["tidemill"]):
            raise _foreign_role_error(role, live["mark"])
        if live["powers"]:
            session.write("ALTER ROLE {} NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS", role)
        if password is not None and not live["login"]:
            session.write("ALTER ROLE {} LOGIN", role)
    if password is not None and not (live and _knows_password(session, role, password, live["mark"])):
        # Hash the password before it is sent, so that the server's logs never contain the password.
        verifier = session.connection.pgconn.encrypt_password(password.encode(), role.encode(), b"scram-sha-256")
        session.write("ALTER ROLE {} PASSWORD {}", role, sql.Literal(verifier.decode()))
    text = json.dumps(mark, sort_keys=True)
    if live is None or live["mark"] != text:
        session.write("COMMENT ON ROLE {} IS {}", role, sql.Literal(text))


def _ensure_settings(session: Session, role: str, live: dict[str, Any] | None, settings: Mapping[str, str]) -> None:
    """Set Postgres parameters on a login, because a login does not inherit parameters from its group role."""
    configured = dict(setting.split("=", 1) for setting in (live or {}).get("config") or ())
    for name, value in settings.items():
        if configured.get(name) != value:
            session.write("ALTER ROLE {} SET {} = {}", role, name, sql.Literal(value))


def _owner_mark(session: Session, owner: Owner) -> dict[str, str]:
    (database,) = session.rows("SELECT current_database()")[0]
    return {**asdict(owner), "database": database}


def _is_ours(comment: str | None, ours: Mapping[str, str]) -> bool:
    try:
        theirs = json.loads(comment or "{}").get("tidemill", {})
    except ValueError:
        theirs = {}
    return all(theirs.get(part) == ours[part] for part in ("namespace", "name", "cluster", "database"))


def _foreign_role_error(role: str, comment: str | None) -> TidemillError:
    return TidemillError(
        Reason.RESOURCE_CONFLICT,
        f"role {role} exists and belongs to another owner (comment: {comment or 'none'})",
        "drop or rename the role, or take the role over with the annotation tidemill.dev/adopt: 'true'",
    )


def _knows_password(session: Session, role: str, password: str, comment: str | None) -> bool:
    (readable,) = session.rows("SELECT has_table_privilege('pg_catalog.pg_authid', 'SELECT')")[0]
    if readable:
        (verifier,) = session.rows("SELECT rolpassword FROM pg_authid WHERE rolname = %s", (role,))[0]
        return matches_verifier(password, verifier or "")
    digest = hashlib.sha256(password.encode()).hexdigest()
    return f'"password": "{digest}"' in (comment or "")


def matches_verifier(password: str, verifier: str) -> bool:
    """Return whether a SCRAM-SHA-256 verifier (RFC 5803) belongs to an ASCII password."""
    method, _, rest = verifier.partition("$")
    if method != "SCRAM-SHA-256" or rest.count(":") != 2:
        return False
    costs, _, keys = rest.partition("$")
    rounds, salt = costs.split(":")
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), base64.b64decode(salt), int(rounds))
    client_key = hmac.digest(salted, b"Client Key", "sha256")
    return hmac.compare_digest(hashlib.sha256(client_key).digest(), base64.b64decode(keys.split(":")[0]))


def _ensure_membership(session: Session, owner: str) -> None:
    """Grant the owner role to the administrator, who can then act as the owner without superuser rights."""
    privilege = "SET" if session.connection.info.server_version >= 160_000 else "MEMBER"
    ((member,),) = session.rows("SELECT pg_has_role(current_user, %s, %s)", (owner, privilege))
    if not member:
        session.write("GRANT {} TO CURRENT_USER", owner)


def _ensure_connect(session: Session, schema: Schema) -> None:
    (database,) = session.rows("SELECT current_database()")[0]
    wanted = {(schema.writer, "CONNECT"), (schema.writer, "TEMPORARY"), (schema.reader, "CONNECT")}
    missing = wanted - _database_grants(session, schema)
    if not missing:
        return
    # All grants on a database are in one row of pg_database. Two transactions cannot update this row at the same time.
    session.rows("SELECT pg_advisory_xact_lock(hashtext('tidemill-ddl'), 0)")
    for role, privilege in sorted(missing):
        session.write("GRANT {} ON DATABASE {} TO {}", sql.SQL(privilege), database, role)


def _database_grants(session: Session, schema: Schema) -> set[tuple[str, str]]:
    rows = session.rows(
        "SELECT r.rolname, a.privilege_type FROM pg_database d, aclexplode(d.datacl) a"
        " JOIN pg_roles r ON r.oid = a.grantee WHERE d.datname = current_database() AND r.rolname = ANY(%s)",
        ([schema.writer, schema.reader],),
    )
    return {(role, privilege) for role, privilege in rows}
