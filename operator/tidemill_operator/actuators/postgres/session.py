"""A connection to Postgres as administrator, which counts writes and raises TidemillError."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg import errors, sql

from tidemill_chassis.postgres import KEEPALIVE, MARGIN_SECONDS, BoundedConnection
from tidemill_contract import tls
from tidemill_operator.addresses import PostgresAddress
from tidemill_operator.errors import Reason, TidemillError

Row = tuple[Any, ...]
LOCK_MS = 5_000
STATEMENT_MS = 60_000
# The idle time in ms after which Postgres ends a transaction.
IDLE_MS = 20_000


class LockBusy(TidemillError):
    """A lock was not acquired in time."""


class NoDatabase(TidemillError):
    """The database does not exist, and the session is read-only."""


class Session:
    """A connection that counts its writes in `changed`."""

    def __init__(self, connection: BoundedConnection) -> None:
        self.connection = connection
        self.changed = 0

    def rows(self, query: str, parameters: Sequence[Any] | dict[str, Any] = ()) -> list[Row]:
        """Return a query's rows."""
        return self.connection.execute(sql.SQL(query), parameters).fetchall()

    def write(self, text: str, *names: str | sql.Composable, parameters: Sequence[Any] = ()) -> None:
        """Run a statement that writes. Each `{}` in the text takes an identifier or SQL."""
        parts = [sql.Identifier(name) if isinstance(name, str) else name for name in names]
        self.connection.execute(sql.SQL(text).format(*parts), parameters or None)
        self.changed += 1

    def write_rows(self, statement: sql.SQL | sql.Composed, parameters: Sequence[Any] | Mapping[str, Any] = ()) -> None:
        """Run a statement that changes rows, and count each changed row as a write."""
        self.changed += max(0, self.connection.execute(statement, parameters).rowcount)

    @contextmanager
    def transaction(self, schema: str) -> Iterator[None]:
        """Open a transaction that excludes other transactions on the same schema."""
        with self.connection.transaction():
            self.rows("SELECT pg_advisory_xact_lock(hashtext('tidemill-ddl'), hashtext(%s))", (schema,))
            yield

    @contextmanager
    def acting_as(self, role: str) -> Iterator[None]:
        """Act as a role within the block, so that the role owns new objects."""
        self.connection.execute(sql.SQL("SET LOCAL ROLE {}").format(sql.Identifier(role)))
        yield
        self.connection.execute("RESET ROLE")


@contextmanager
def open_session(
    address: PostgresAddress, doing: str, *, timeout_seconds: float = 10.0, read_only: bool = False
) -> Iterator[Session]:
    """Open a session in autocommit mode.

    Raises:
        LockBusy: another session holds a lock.
        NoDatabase: the database is missing and `read_only` is set.
    """
    if not address.host:
        raise TidemillError(Reason.UNREACHABLE, "no Postgres address is configured", "set TIDEMILL_POSTGRES_URL")
    try:
        with _connect(address, timeout_seconds, read_only=read_only) as connection:
            yield Session(connection)
    except psycopg.Error as error:
        raise _to_tidemill_error(error, doing, address) from error


def _connect(address: PostgresAddress, timeout_seconds: float, *, read_only: bool) -> BoundedConnection:
    try:
        return _open(address, address.database, timeout_seconds, read_only=read_only)
    except psycopg.OperationalError as error:
        if f'database "{address.database}" does not exist' not in str(error):
            raise
        if read_only:
            raise NoDatabase(Reason.WAITING, f"{address.public_url} has no database {address.database} yet") from error
    with _open(address, "postgres", timeout_seconds) as maintenance:
        maintenance.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(address.database)))
    return _open(address, address.database, timeout_seconds)


def _open(
    address: PostgresAddress, database: str, timeout_seconds: float, *, read_only: bool = False
) -> BoundedConnection:
    connection = BoundedConnection.connect(
        host=address.host,
        port=address.port,
        dbname=database,
        user=address.user,
        password=address.password,
        **address.tls,
        autocommit=True,
        connect_timeout=max(2, int(timeout_seconds)),
        **KEEPALIVE,
        application_name="tidemill-operator",
        options=f"-c TimeZone=UTC -c lock_timeout={LOCK_MS} -c statement_timeout={STATEMENT_MS}"
        f" -c idle_in_transaction_session_timeout={IDLE_MS} -c client_min_messages=warning"
        f" -c default_transaction_read_only={'on' if read_only else 'off'}",
    )
    connection.answer_seconds = STATEMENT_MS / 1000 + MARGIN_SECONDS
    return connection


def _to_tidemill_error(error: psycopg.Error, doing: str, address: PostgresAddress) -> TidemillError:
    text = " ".join(str(error).split())
    state = error.sqlstate or ""
    if isinstance(error, errors.LockNotAvailable | errors.DeadlockDetected | errors.SerializationFailure):
        return LockBusy(Reason.WAITING, f"{doing}: a lock was not free within {LOCK_MS / 1000:g} s ({text})")
    if state.startswith(("08", "57P")) or (isinstance(error, psycopg.OperationalError) and not state):
        remedy = tls.certificate_remedy("postgres", text)
        how = "has a certificate that is not trusted" if remedy else "does not answer"
        return TidemillError(Reason.UNREACHABLE, f"{doing}: {address.public_url} {how} ({text})", remedy)
    if state.startswith(("53", "58")):
        remedy = "check the server's disk space, memory and connections"
        return TidemillError(Reason.REFUSED, f"{doing}: Postgres refuses ({text})", remedy)
    if state.startswith(("28", "42501")):
        return TidemillError(
            Reason.REFUSED,
            f"{doing}: Postgres refuses ({text})",
            "the login needs CREATEROLE and CREATE on the database",
        )
    return TidemillError(Reason.INTERNAL, f"{doing}: {text} (SQLSTATE {state or 'none'})")
