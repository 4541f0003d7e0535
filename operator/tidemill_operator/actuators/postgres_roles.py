"""The three roles of a schema: an owner that nobody logs in as, a writer and a reader with passwords of their own."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from psycopg import sql

from tidemill_operator.actuators.base import PipelineSecrets
from tidemill_operator.actuators.postgres_session import Session
from tidemill_operator.errors import Reason, TidemillError
from tidemill_operator.plan.model import Owner, Schema

# A lost node's locks go within about ten seconds.
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
    """Make the roles so.

    Raises:
        TidemillError: a role of that name belongs to somebody else.
    """
    live = _observe(session, (schema.owner, schema.writer, schema.reader))
    logins = {schema.writer: secrets.writer.password, schema.reader: secrets.reader.password}
    settings = {schema.writer: WRITER_SETTINGS, schema.reader: READER_SETTINGS}
    for role in (schema.owner, schema.writer, schema.reader):
        _ensure(session, role, live.get(role), owner=owner, password=logins.get(role), adopt=adopt)
        configured = dict(setting.split("=", 1) for setting in (live.get(role) or {}).get("config") or ())
        for name, value in settings.get(role, {}).items():
            if configured.get(name) != value:
                session.write("ALTER ROLE {} SET {} = {}", role, name, sql.Literal(value))
    _ensure_membership(session, schema.owner)
    _ensure_connect(session, schema)


def drop_roles(session: Session, schema: Schema) -> None:
    """Drop the roles that exist; they must not own anything any more."""
    (database,) = session.rows("SELECT current_database()")[0]
    for role in _observe(session, (schema.owner, schema.writer, schema.reader)):
        session.write("REVOKE ALL ON DATABASE {} FROM {}", database, role)
        session.write("DROP ROLE {}", role)


def _observe(session: Session, roles: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    rows = session.rows(
        "SELECT rolname, rolcanlogin, rolconfig, shobj_description(oid, 'pg_authid'),"
        " rolsuper, rolcreatedb, rolcreaterole, rolreplication, rolbypassrls FROM pg_roles WHERE rolname = ANY(%s)",
        (list(roles),),
    )
    return {
        name: {"login": login, "config": config, "mark": mark, "powers": any(powers)}
        for name, login, config, mark, *powers in rows
    }


def _ensure(
    session: Session, role: str, live: dict[str, Any] | None, *, owner: Owner, password: str | None, adopt: bool
) -> None:
    (database,) = session.rows("SELECT current_database()")[0]
    login = sql.SQL("LOGIN") if password is not None else sql.SQL("NOLOGIN")
    mark = {"tidemill": {**asdict(owner), "database": database}}
    if password is not None:
        mark["tidemill"]["password"] = hashlib.sha256(password.encode()).hexdigest()
    if live is None:
        session.write("CREATE ROLE {} {}", role, login)
    else:
        _check_mark(role, live["mark"], mark["tidemill"], adopt=adopt)
        if live["login"] != (password is not None) or live["powers"]:
            none = "NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS"
            session.write("ALTER ROLE {} {} {}", role, login, sql.SQL(none if live["powers"] else ""))
    if password is not None and not (live and _knows_password(session, role, password, live["mark"])):
        # Encrypted here, so that no server log ever holds it.
        verifier = session.connection.pgconn.encrypt_password(password.encode(), role.encode(), b"scram-sha-256")
        session.write("ALTER ROLE {} PASSWORD {}", role, sql.Literal(verifier.decode()))
    text = json.dumps(mark, sort_keys=True)
    if live is None or live["mark"] != text:
        session.write("COMMENT ON ROLE {} IS {}", role, sql.Literal(text))


def _check_mark(role: str, comment: str | None, ours: dict[str, str], *, adopt: bool) -> None:
    try:
        theirs = json.loads(comment or "{}").get("tidemill", {})
    except ValueError:
        theirs = {}
    same = all(theirs.get(part) == ours[part] for part in ("namespace", "name", "cluster", "database"))
    if not same and not adopt:
        raise TidemillError(
            Reason.RESOURCE_CONFLICT,
            f"role {role} exists and is not this pipeline's (it says: {comment or 'nothing'})",
            "drop or rename it, or take it over with the annotation tidemill.dev/adopt: 'true'",
        )


def _knows_password(session: Session, role: str, password: str, comment: str | None) -> bool:
    (readable,) = session.rows("SELECT has_table_privilege('pg_catalog.pg_authid', 'SELECT')")[0]
    if readable:
        (verifier,) = session.rows("SELECT rolpassword FROM pg_authid WHERE rolname = %s", (role,))[0]
        return verifies(password, verifier or "")
    digest = hashlib.sha256(password.encode()).hexdigest()
    return f'"password": "{digest}"' in (comment or "")


def verifies(password: str, verifier: str) -> bool:
    """Whether a SCRAM-SHA-256 verifier (RFC 5803, as Postgres stores it) belongs to an ASCII password."""
    method, _, rest = verifier.partition("$")
    if method != "SCRAM-SHA-256" or rest.count(":") != 2:
        return False
    costs, _, keys = rest.partition("$")
    rounds, salt = costs.split(":")
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), base64.b64decode(salt), int(rounds))
    client_key = hmac.digest(salted, b"Client Key", "sha256")
    return hmac.compare_digest(hashlib.sha256(client_key).digest(), base64.b64decode(keys.split(":")[0]))


def _ensure_membership(session: Session, owner: str) -> None:
    """An administrator that is no superuser has to be a member of the owner to act as it."""
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
    # All pipelines' grants are in one row of the catalog, which two transactions cannot write at once.
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
