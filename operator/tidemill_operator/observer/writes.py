"""Checks whether Postgres can write. The check runs only while events wait and none is counted.

A server with a full disk, or a server that has become a standby, still answers queries. So positions can still be read,
but do not advance.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

import psycopg

from tidemill_chassis.resilience.failures import database_refuses_writes
from tidemill_operator.actuators.postgres.session import connected
from tidemill_operator.addresses import PostgresAddress
from tidemill_operator.errors import TidemillError

log = logging.getLogger(__name__)
_SECONDS = 2.0
_WAIT_SECONDS = 1.0
# Write a megabyte of new pages, because a full disk may still have space in existing pages. Rows of this size are not
# compressed.
_WRITE = """CREATE TEMPORARY TABLE tidemill_probe ON COMMIT DROP AS
    SELECT repeat('x', 1900) AS filler FROM generate_series(1, 512)"""


class Writes:
    """Reports whether Postgres can write. `refusal` waits at most a second for the check.

    Args:
        ask: returns why Postgres cannot write, or an empty text if it can. The call may take as long as a client's
            timeout.
    """

    def __init__(self, ask: Callable[[], str]) -> None:
        self._ask = ask
        self._asking: threading.Thread | None = None
        self._refusal = ""

    @classmethod
    def of(cls, postgres: PostgresAddress) -> Writes:
        """Return a check that uses the administrator's login of a database."""
        return cls(lambda: refusal_of(postgres))

    def refusal(self) -> str:
        """Return why Postgres cannot write, or an empty text if it can or if this is unknown.

        Start a check, unless one is running.
        """
        if self._asking is None or not self._asking.is_alive():
            self._refusal = ""
            self._asking = threading.Thread(target=self._look, name="writes", daemon=True)
            self._asking.start()
        self._asking.join(_WAIT_SECONDS)
        return self._refusal

    def _look(self) -> None:
        try:
            self._refusal = self._ask()
        except Exception:
            log.exception("checking whether Postgres can write failed")


def refusal_of(postgres: PostgresAddress) -> str:
    """Write a temporary table.

    Return why Postgres refuses to write a test table, or an empty text if it writes the table or does not answer.
    """
    try:
        with connected(postgres, "checking writes", timeout_seconds=_SECONDS) as session:
            session.connection.hurry(_SECONDS)
            try:
                with session.connection.transaction(force_rollback=True):
                    session.connection.execute(_WRITE)
            except psycopg.Error as error:
                return " ".join(str(error).split()) if database_refuses_writes(error) else ""
    except TidemillError as error:
        log.info("%s", error)
    return ""
