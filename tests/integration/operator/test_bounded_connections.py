"""Connections to Postgres whose answers have a deadline at this end."""

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
    """What `connect` takes."""
    address = servers.postgres
    known = {"host": address.host, "port": address.port, "user": address.user, "password": address.password}
    return {
        **known,
        "dbname": address.database,
        "application_name": "bounded",
        "autocommit": True,
        **KEEPALIVE,
    } | further


def test_a_silent_server_ends_a_wait(servers: Any) -> None:
    """All that is sent gets lost: the statement ends after the deadline, and the connection is closed."""
    with BlackHole(servers.postgres.port) as hole:
        connection = BoundedConnection.connect(**login(servers, host="127.0.0.1", port=hole.port))
        connection.answer_seconds = SECONDS
        connection.execute("SELECT 1")
        heard_at = connection.heard_at
        began = time.monotonic()
        told = r"no answer from Postgres within 0\.5 s"
        with hole.open(), pytest.raises(psycopg.errors.ConnectionTimeout, match=told):
            connection.execute("SELECT 1")
        assert time.monotonic() - began < 10 * SECONDS
        assert (connection.closed, connection.heard_at > heard_at) == (True, True)


def test_in_a_hurry_the_server_ends_a_statement_itself(servers: Any) -> None:
    """While it lives its own answer comes first, and the connection can be used further."""
    with BoundedConnection.connect(**login(servers)) as connection:
        connection.hurry(SECONDS)
        with pytest.raises(psycopg.errors.QueryCanceled):
            connection.execute("SELECT pg_sleep(60)")
        assert connection.execute("SELECT 1").fetchone() == (1,)


@pytest.mark.parametrize("cancelled", [False, True])
def test_a_wait_that_is_given_up_leaves_no_statement_behind(
    servers: Any, admin: psycopg.Connection[Any], *, cancelled: bool
) -> None:
    """By its deadline or with its task; the server is asked to cancel in the background."""

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
