"""Connections to Postgres with a timeout on the client's side.

The server's statement timeout has no effect while the server is frozen or its packets are lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Any, TypeVar

import psycopg
from psycopg import generators, waiting
from psycopg.abc import PQGen
from psycopg.pq import TransactionStatus

T = TypeVar("T")
MARGIN_SECONDS = 2.0
"""The client waits this much longer than the statement timeout. A working server then reports the timeout first."""
KEEPALIVE: dict[str, Any] = {
    "keepalives_idle": 5, "keepalives_interval": 2, "keepalives_count": 3, "tcp_user_timeout": 10_000,
}  # fmt: skip
"""Arguments of `connect`. The client detects the loss of the server's machine within about 10 s."""
CANCEL_SECONDS = 5.0
_ANSWER_SECONDS = 10.0 + MARGIN_SECONDS
INTERVAL_SECONDS = 0.1
_cancelling: set[asyncio.Task[None]] = set()


class BoundedConnection(psycopg.Connection[tuple[Any, ...]]):
    """A connection that closes itself if the server does not answer in time.

    Attributes:
        answer_seconds: the maximum time for one answer of the server.
        heard_at: when the latest wait for the server ended (`time.monotonic()`).
    """

    answer_seconds = _ANSWER_SECONDS
    heard_at = 0.0

    def wait(self, gen: PQGen[T], interval: float = INTERVAL_SECONDS, timeout: float | None = None) -> T:
        """Wait for an answer.

        Raises:
            psycopg.errors.ConnectionTimeout: no answer came in time, and the connection was closed.
        """
        limit = self.answer_seconds if timeout is None else timeout
        began = time.monotonic()
        try:
            return super().wait(gen, interval, limit)
        except psycopg.OperationalError as error:
            if error.sqlstate or time.monotonic() - began < limit:
                raise
            self.pgconn.finish()
            raise _no_answer(limit) from None
        finally:
            self.heard_at = time.monotonic()

    def set_timeout(self, seconds: float) -> None:
        """Set the timeout of all later statements, on the server and on the client."""
        self.answer_seconds = seconds + MARGIN_SECONDS
        self.execute(f"SET statement_timeout = '{int(seconds * 1000)}ms'")


class BoundedAsyncConnection(psycopg.AsyncConnection[tuple[Any, ...]]):
    """A connection with a time limit for the answers of the server.

    The connection closes itself if an answer exceeds the limit, or on cancellation of its task.

    Attributes:
        answer_seconds: the maximum time for one answer of the server.
        statement_sent_at: the time at which the latest statement was sent (`time.monotonic()`).
    """

    answer_seconds = _ANSWER_SECONDS
    statement_sent_at = 0.0

    async def wait(
        self,
        gen: PQGen[T],
        interval: float = INTERVAL_SECONDS,
        timeout: float | None = None,  # noqa: ASYNC109 - psycopg's own
    ) -> T:
        """Wait for an answer.

        Raises:
            psycopg.errors.ConnectionTimeout: no answer came in time, and the connection was closed.
        """
        limit = self.answer_seconds if timeout is None else timeout
        self.statement_sent_at = time.monotonic()
        try:
            async with asyncio.timeout(limit):
                return await waiting.wait_async(gen, self.pgconn.socket, interval=interval)
        except TimeoutError:
            self._close_now()
            raise _no_answer(limit) from None
        except asyncio.CancelledError:
            self._close_now()
            raise

    def _close_now(self) -> None:
        # Cancel the statement in the background, because psycopg itself would wait up to ten seconds.
        if self.pgconn.transaction_status == TransactionStatus.ACTIVE:
            with contextlib.suppress(psycopg.Error):
                task = asyncio.get_running_loop().create_task(_cancel(self.pgconn.cancel_conn()))
                _cancelling.add(task)
                task.add_done_callback(_cancelling.discard)
        self.pgconn.finish()


def _no_answer(seconds: float) -> psycopg.errors.ConnectionTimeout:
    return psycopg.errors.ConnectionTimeout(f"no answer from Postgres within {seconds:g} s")


async def _cancel(request: Any) -> None:
    with contextlib.suppress(psycopg.Error, OSError, TimeoutError):
        request.start()
        async with asyncio.timeout(CANCEL_SECONDS):
            await waiting.wait_conn_async(generators.cancel(request), interval=INTERVAL_SECONDS)
    request.finish()
