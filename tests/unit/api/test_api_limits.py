"""What one caller may cost the others: clients that do not read, queries that take too long, breakers by pipeline."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import Any

import psycopg
import pytest
from prometheus_client import REGISTRY

from tidemill_api.database_errors import QueryTooLong, as_problem, failed, outage, retryable
from tidemill_api.formats.ndjson import FORMAT
from tidemill_api.http import replies
from tidemill_api.http.replies import PiecesReply
from tidemill_api.pipeline_guards import PipelineGuards
from tidemill_chassis.resilience.config import BreakerOpen, Guard, ResilienceConfig


class Export:
    """An export whose client takes each part after `pause` seconds; None: never."""

    def __init__(self, pause: float | None, parts: int = 8) -> None:
        self.pause, self.parts = pause, parts
        self.taken: list[dict[str, Any]] = []
        self.closed = False

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        try:
            for _ in range(self.parts // 2):
                yield b"x" * (2 * replies.PART_BYTES)
        finally:
            self.closed = True

    async def send(self, message: Any) -> None:
        if message.get("body"):
            await (asyncio.Event().wait() if self.pause is None else asyncio.sleep(self.pause))
        self.taken.append(message)

    async def receive(self) -> Any:
        await asyncio.Event().wait()

    def run(self) -> None:
        scope = {"type": "http", "asgi": {"spec_version": "2.3"}}
        asyncio.run(PiecesReply(self.pieces(), FORMAT.header, {})(scope, self.receive, self.send))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replies, "PATIENCE_SECONDS", 0.2)
    monkeypatch.setattr(replies, "SLOWEST_BYTES_PER_SECOND", replies.PART_BYTES / 0.1)


def slow_readers() -> float:
    return REGISTRY.get_sample_value("tidemill_slow_readers_total") or 0.0


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("pause", "whole"),
    [
        (0.0, True),
        (0.05, True),  # slower than the patience in all, but steady
        (0.19, False),  # each part comes in time, but all of it too slowly
        (None, False),
    ],
)
def test_a_client_has_to_read_at_a_rate(pause: float | None, whole: bool) -> None:
    """One that does not sees a body without its end, and its place is free."""
    export, before = Export(pause), slow_readers()
    export.run()
    assert export.closed
    assert (export.taken[-1].get("more_body") is False) is whole
    assert slow_readers() - before == (0 if whole else 1)


@pytest.mark.usefixtures("quick")
def test_what_buffers_take_at_once_earns_no_more_than_the_patience() -> None:
    async def work() -> None:
        allowance = replies.Allowance()
        for _ in range(100):
            await allowance.take(asyncio.sleep(0), replies.PART_BYTES)
        with pytest.raises(replies.Slow):
            await allowance.take(asyncio.sleep(0.5), replies.PART_BYTES)

    asyncio.run(work())


@pytest.mark.parametrize("error", [QueryTooLong(8.0), psycopg.errors.QueryCanceled("statement timeout")])
def test_a_query_that_takes_too_long_is_to_blame_itself(error: Exception) -> None:
    """It is neither repeated nor counted against Postgres; an older answer stands in, else it is 504 with advice."""
    assert (failed(error), retryable(error), outage(error)) == (False, False, True)
    problem = as_problem(error, "shop")
    assert problem is not None
    assert (problem.status, problem.code) == (504, "query_timeout")
    assert "shorter range" in problem.detail


def guards() -> tuple[Guard, PipelineGuards]:
    server = ResilienceConfig().guards(is_failure={"database": failed}).database
    server.policy = replace(server.policy, retries=0)
    return server, PipelineGuards(server)


async def broken() -> None:
    raise psycopg.errors.IndexCorrupted


async def fine() -> str:
    return "fine"


def test_a_pipelines_failures_open_its_own_breaker() -> None:
    async def work() -> None:
        server, found = guards()
        for _ in range(server.policy.failures):
            with pytest.raises(psycopg.Error):
                await found.of("broken").acall(broken)
        with pytest.raises(BreakerOpen, match="database/broken"):
            await found.of("broken").acall(fine)
        assert await found.of("well").acall(fine) == "fine"
        assert (server.state, found.of("broken").state) == ("closed", "open")
        found.clear()
        assert await found.of("broken").acall(fine) == "fine"

    asyncio.run(work())


def test_nobody_asks_a_server_that_is_away() -> None:
    server, found = guards()
    for _ in range(server.policy.failures):
        server.failure()
    with pytest.raises(BreakerOpen, match="database:"):
        found.of("any")


def test_the_breaker_of_a_pipeline_that_is_gone_is_no_series() -> None:
    _, found = guards()
    found.of("gone-soon")
    assert REGISTRY.get_sample_value("tidemill_breaker_state", {"name": "database/gone-soon"}) == 0.0
    found.forget("gone-soon")
    assert REGISTRY.get_sample_value("tidemill_breaker_state", {"name": "database/gone-soon"}) is None
