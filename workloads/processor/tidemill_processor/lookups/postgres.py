"""Reads the rows of a lookup from a table or query in Postgres. The login is in a Secret."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from tidemill_chassis.postgres import KEEPALIVE, MARGIN_SECONDS, BoundedConnection
from tidemill_contract.files import read_text
from tidemill_contract.resource.lookups.model import LookupSpec
from tidemill_contract.resource.spec import PipelineSpec
from tidemill_processor.lookups.rows import RowDecoder, row_spec
from tidemill_processor.lookups.table import MAX_ROWS, LookupFault, Table

CONNECT_SECONDS, STATEMENT_SECONDS, LOAD_SECONDS = 5, 30, 120
"""The timeouts in seconds of the connection, of each statement, and of the whole load."""
MAX_ROW_BYTES = 64 * 1024
"""The maximum size in bytes of one row as JSON."""
_FETCH_ROWS = 500
_SHOWN = 100
_SECRET_KEYS = {
    "host": ("host",),
    "port": ("port",),
    "dbname": ("dbname", "database"),
    "user": ("username", "user"),
    "password": ("password",),
    "sslmode": ("sslmode",),
}
"""The keys of the Secret that may contain each connection setting."""
_SECRET_FILES = {"sslrootcert": "ca.crt", "sslcert": "tls.crt", "sslkey": "tls.key"}


class PostgresSource:
    """Reads the table or the query of one lookup."""

    def __init__(self, spec: PipelineSpec, lookup: LookupSpec, folder: Path) -> None:
        """Prepare the query. `folder` contains a file for each key of the Secret."""
        self._source, self._folder = lookup.source, folder
        # Read timestamps without a time zone as UTC, because row_to_json writes no UTC offset for them.
        rows = row_spec(spec, lookup, zone="UTC")
        self._decoder = RowDecoder(spec, lookup, rows)
        self._columns = tuple(dict.fromkeys(str(field.member_path[0]) for field in rows.source.fields))
        self.refresh_seconds = lookup.source.refresh_ms / 1000
        query = " ".join((lookup.source.query or "").split())
        shown = query if len(query) <= _SHOWN else f"{query[: _SHOWN - 1]}…"
        self._label = f"table {lookup.source.table}" if lookup.source.table else f"query {shown}"
        self._member = "from.table" if lookup.source.table else "from.query"
        secret = lookup.source.secret_ref.name if lookup.source.secret_ref else ""
        self._secret = f"the Secret {secret} ({folder})"
        self.source_name = f"Postgres of {self._secret}, {self._label}"

    def load(self) -> Table:
        """Return the rows.

        Raises:
            LookupFault: Postgres does not answer, or the rows cannot be read.
        """
        login = self._login()
        self.source_name = f"Postgres {login['host']}:{login['port']}/{login.get('dbname', '')}, {self._label}"
        try:
            with closing(self._connect(login)) as connection:
                return self._decoder.table(self._rows(connection))
        except psycopg.Error as error:
            raise LookupFault(self._describe_error(error)) from None

    def _describe_error(self, error: psycopg.Error) -> str:
        diagnostics = error.diag
        if not diagnostics.message_primary:  # the connection failed
            return " ".join(str(error).split()) or type(error).__name__
        parts = [diagnostics.message_primary, diagnostics.message_detail, diagnostics.message_hint]
        text = "; ".join(" ".join(part.split()).replace('"q.', '"') for part in parts if part)
        match error:
            case psycopg.errors.UndefinedTable():
                return f"{text}; create it, or correct {self._member}"
            case psycopg.errors.UndefinedColumn():
                return f"{text}; correct from.key, the path of a field, or {self._member}"
            case psycopg.errors.InsufficientPrivilege():
                return f"{text}; grant SELECT to the user of {self._secret}"
            case psycopg.errors.QueryCanceled():
                return f"{text}; a statement takes at most {STATEMENT_SECONDS} s: make the query faster"
            case psycopg.errors.SyntaxError():
                return f"{text}; correct {self._member}"
        return text

    def _connect(self, login: dict[str, Any]) -> BoundedConnection:
        timeout = STATEMENT_SECONDS * 1000
        connection = BoundedConnection.connect(
            **login,
            **KEEPALIVE,
            connect_timeout=CONNECT_SECONDS,
            application_name="tidemill-lookup",
            options=f"-c TimeZone=UTC -c statement_timeout={timeout} -c lock_timeout={timeout}"
            f" -c idle_in_transaction_session_timeout={timeout} -c default_transaction_read_only=on",
        )
        connection.answer_seconds = STATEMENT_SECONDS + MARGIN_SECONDS
        return connection

    def _rows(self, connection: BoundedConnection) -> Iterator[bytes]:
        began, number = time.monotonic(), 0
        with connection.cursor(name="tidemill_lookup") as cursor:
            cursor.execute(self._statement())
            while rows := cursor.fetchmany(_FETCH_ROWS):
                for (text,) in rows:
                    number += 1
                    if text is None:
                        message = f"row {number} has more than {MAX_ROW_BYTES >> 10} KiB as JSON"
                        raise LookupFault(f"{message} (the limit of a row); load shorter values")
                    yield text.encode()
                if time.monotonic() - began > LOAD_SECONDS:
                    remedy = "load fewer rows, or make the query faster"
                    raise LookupFault(f"reading took more than {LOAD_SECONDS} s; {remedy}")

    def _statement(self) -> sql.Composed:
        columns = sql.SQL(", ").join(map(sql.Identifier, self._columns))
        if self._source.table is not None:
            rows: sql.Composable = sql.Identifier(*self._source.table.split("."))
        else:
            # Close the parenthesis on a new line, because the query may end with a comment.
            query = (self._source.query or "").strip().rstrip(";")
            rows = sql.SQL("({}\n) AS q").format(sql.SQL(query))
        return sql.SQL(
            "SELECT CASE WHEN octet_length(j) <= {most} THEN j END FROM ("
            "SELECT row_to_json(r)::text AS j FROM (SELECT {columns} FROM {rows}) AS r LIMIT {limit}) AS t"
        ).format(most=MAX_ROW_BYTES, columns=columns, rows=rows, limit=MAX_ROWS + 1)

    def _login(self) -> dict[str, Any]:
        try:
            parameters: dict[str, Any] = {}
            if uri := self._secret_text("uri"):
                parameters = dict(conninfo_to_dict(uri))
            for setting, names in _SECRET_KEYS.items():
                if value := next(filter(None, map(self._secret_text, names)), ""):
                    parameters[setting] = value
            for setting, name in _SECRET_FILES.items():
                if (self._folder / name).exists():
                    parameters[setting] = str(self._folder / name)
        except (OSError, UnicodeDecodeError) as error:
            raise LookupFault(f"{self._secret} cannot be read: {error}") from None
        except psycopg.Error:
            raise LookupFault(f"uri of {self._secret} is no URI of Postgres; write postgresql://…") from None
        if not parameters.get("host"):
            remedy = "add host, port, dbname, username and password, or uri"
            raise LookupFault(f"{self._secret} names no server; {remedy}")
        parameters.setdefault("port", "5432")
        if "sslrootcert" in parameters:
            parameters.setdefault("sslmode", "verify-full")
        return {name: value for name, value in parameters.items() if name not in ("options", "connect_timeout")}

    def _secret_text(self, name: str) -> str:
        path = self._folder / name
        return read_text(path).strip() if path.exists() else ""
