"""Check whether Postgres can write."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

import psycopg

from tidemill_chassis.resilience.failures import database_refuses_writes
from tidemill_operator.actuators.postgres.session import open_session
from tidemill_operator.addresses import PostgresAddress
from tidemill_operator.errors import TidemillError

log = logging.getLogger(__name__)
_SECONDS = 2.0
_WAIT_SECONDS = 1.0
# Write a megabyte. On a full disk, a small write could still fit into existing pages and succeed. Postgres does not
# compress rows of 1900 bytes.
_WRITE = """CREATE TEMPORARY TABLE tidemill_probe ON COMMIT DROP AS
    SELECT repeat('x', 1900) AS filler FROM generate_series(1, 512)"""


class WriteCheck:
    """Checks in a separate thread whether Postgres can write."""

    def __init__(self, ask: Callable[[], str]) -> None:
        self._ask = ask
        self._asking: threading.Thread | None = None
        self._refusal = ""

    @classmethod
    def of(cls, postgres: PostgresAddress) -> WriteCheck:
        """Return a `WriteCheck` that connects with the administrator's login of the database."""
        return cls(lambda: write_refusal(postgres))

    def refusal(self) -> str:
        """Return why Postgres cannot write, or an empty text. The call waits at most a second."""
        if self._asking is None or not self._asking.is_alive():
            self._refusal = ""
            self._asking = threading.Thread(target=self._check, name="writes", daemon=True)
            self._asking.start()
        self._asking.join(_WAIT_SECONDS)
        return self._refusal

    def _check(self) -> None:
        try:
            self._refusal = self._ask()
        except Exception:
            log.exception("cannot check whether Postgres accepts writes")


def write_refusal(postgres: PostgresAddress) -> str:
    """Return the reason if Postgres refuses to write a temporary table, else an empty text."""
    try:
        with open_session(postgres, "checking writes", timeout_seconds=_SECONDS) as session:
            session.connection.set_timeout(_SECONDS)
            try:
                with session.connection.transaction(force_rollback=True):
                    session.connection.execute(_WRITE)
            except psycopg.Error as error:
                return " ".join(str(error).split()) if database_refuses_writes(error) else ""
    except TidemillError as error:
        log.info("%s", error)
    return ""
