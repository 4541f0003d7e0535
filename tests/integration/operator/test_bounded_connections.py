"""Tests of connections to a real Postgres with a deadline for answers at the client."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import psycopg
import pytest

from running.hanging import BlackHole
from tidemill_chassis.postgres import KEEPALIVE, BoundedAsyncConnection, BoundedConnection
from waiting import eventually, eventually_async

pytestmark = pytest.mark.integration
SECONDS = 0.5
SLEEPING = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'bounded' AND state = 'active'"


def login(servers: Any, **further: Any) -> dict[str, Any]:
    """Return the arguments of `connect`."""
    address = servers.postgres
    login = {"host": address.host, "port": address.port, "user": address.user, "password": address.password}
    return {
        **login,
        "dbname": address.database,
        "application_name": "bounded",
        "autocommit": True,
        **KEEPALIVE,
    } | further


def test_a_statement_ends_at_its_deadline_when_the_server_is_silent(servers: Any) -> None:
    """All packets are lost. The connection is closed at the deadline."""
    with BlackHole(servers.postgres.port) as hole:
        connection = BoundedConnection.connect(**login(servers, host="127.0.0.1", port=hole.port))
        connection.answer_seconds = SECONDS
        connection.execute("SELECT 1")
        heard_at = connection.heard_at
        began = time.monotonic()
        message = r"no answer from Postgres within 0\.5 s"
        with hole.open(), pytest.raises(psycopg.errors.ConnectionTimeout, match=message):
            connection.execute("SELECT 1")
        assert time.monotonic() - began < 10 * SECONDS
        assert (connection.closed, connection.heard_at > heard_at) == (True, True)


def test_a_hurried_statement_is_ended_by_a_server_that_answers(servers: Any) -> None:
    """The server's timeout ends it before the client's deadline, so the connection stays usable."""
    with BoundedConnection.connect(**login(servers)) as connection:
        connection.set_timeout(SECONDS)
        with pytest.raises(psycopg.errors.QueryCanceled):
            connection.execute("SELECT pg_sleep(60)")
        assert connection.execute("SELECT 1").fetchone() == (1,)


@pytest.mark.parametrize("cancelled", [False, True])
def test_a_statement_whose_client_stops_waiting_ends_on_the_server(
    servers: Any, admin: psycopg.Connection[Any], *, cancelled: bool
) -> None:
    """The client stops at its deadline or with its task. A request to cancel is sent in the background."""

    async def work() -> bool:
        connection = await BoundedAsyncConnection.connect(**login(servers))
        connection.answer_seconds = 60.0 if cancelled else SECONDS
        with pytest.raises(TimeoutError if cancelled else psycopg.errors.ConnectionTimeout):
            async with asyncio.timeout(SECONDS if cancelled else None):
                await connection.execute("SELECT pg_sleep(60)")
        closed = connection.closed
        await eventually_async(lambda: len(asyncio.all_tasks()) == 1, what="the request to cancel is sent")
        return closed

    assert asyncio.run(work())
    eventually(lambda: admin.execute(SLEEPING).fetchone() == (0,), seconds=20, what="the end of the statement")
