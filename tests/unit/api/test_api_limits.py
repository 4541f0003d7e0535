"""Tests of limits that protect callers from each other: slow clients, long queries, and breakers by pipeline."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import Any

import psycopg
import pytest
from prometheus_client import REGISTRY

from tidemill_api.database_errors import QueryTooLong, as_problem, is_failure, is_outage, is_retryable
from tidemill_api.formats.ndjson import FORMAT
from tidemill_api.http import replies
from tidemill_api.http.replies import StreamReply
from tidemill_api.pipeline_guards import PipelineGuards
from tidemill_chassis.resilience.config import BreakerOpen, Guard, ResilienceConfig


class Export:
    """An export whose client takes each part after `pause` seconds, or never if `pause` is None."""

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
        asyncio.run(StreamReply(self.pieces(), FORMAT.content_type_header, {})(scope, self.receive, self.send))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replies, "MAX_PAUSE_SECONDS", 0.2)
    monkeypatch.setattr(replies, "MIN_BYTES_PER_SECOND", replies.PART_BYTES / 0.1)


def slow_readers() -> float:
    return REGISTRY.get_sample_value("tidemill_slow_readers_total") or 0.0


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("pause", "whole"),
    [
        (0.0, True),
        (0.05, True),  # The whole body takes longer than the maximum pause, but the rate is high enough.
        (0.19, False),  # Each part is taken within the maximum pause, but the rate is too low.
        (None, False),
    ],
)
def test_an_export_ends_if_its_client_reads_below_the_minimum_rate(pause: float | None, whole: bool) -> None:
    """The client gets a body without its end, and the resources of the export are released."""
    export, before = Export(pause), slow_readers()
    export.run()
    assert export.closed
    assert (export.taken[-1].get("more_body") is False) is whole
    assert slow_readers() - before == (0 if whole else 1)


@pytest.mark.usefixtures("quick")
def test_data_that_buffers_accept_at_once_extends_the_budget_only_to_the_maximum_pause() -> None:
    async def work() -> None:
        budget = replies.SendBudget()
        for _ in range(100):
            await budget.await_send(asyncio.sleep(0), replies.PART_BYTES)
        with pytest.raises(replies.SlowClient):
            await budget.await_send(asyncio.sleep(0.5), replies.PART_BYTES)

    asyncio.run(work())


@pytest.mark.parametrize("error", [QueryTooLong(8.0), psycopg.errors.QueryCanceled("statement timeout")])
def test_a_query_timeout_is_no_failure_of_postgres_and_is_not_retried(error: Exception) -> None:
    """The cache may answer with a stale answer. Otherwise, the problem is 504 with advice."""
    assert (is_failure(error), is_retryable(error), is_outage(error)) == (False, False, True)
    problem = as_problem(error, "shop")
    assert problem is not None
    assert (problem.status, problem.code) == (504, "query_timeout")
    assert "shorter range" in problem.detail


def guards() -> tuple[Guard, PipelineGuards]:
    server = ResilienceConfig().guards(is_failure={"database": is_failure}).database
    server.policy = replace(server.policy, retries=0)
    return server, PipelineGuards(server)


async def broken() -> None:
    raise psycopg.errors.IndexCorrupted


async def fine() -> str:
    return "fine"


def test_failures_of_a_pipeline_open_only_its_breaker() -> None:
    async def work() -> None:
        server, pipeline_guards = guards()
        for _ in range(server.policy.failures):
            with pytest.raises(psycopg.Error):
                await pipeline_guards.get("broken").acall(broken)
        with pytest.raises(BreakerOpen, match="database/broken"):
            await pipeline_guards.get("broken").acall(fine)
        assert await pipeline_guards.get("well").acall(fine) == "fine"
        assert (server.state, pipeline_guards.get("broken").state) == ("closed", "open")
        pipeline_guards.clear()
        assert await pipeline_guards.get("broken").acall(fine) == "fine"

    asyncio.run(work())


def test_the_open_breaker_of_the_server_refuses_queries_of_all_pipelines() -> None:
    server, pipeline_guards = guards()
    for _ in range(server.policy.failures):
        server.record_failure()
    with pytest.raises(BreakerOpen, match="database:"):
        pipeline_guards.get("any")


def test_the_metric_of_a_breaker_is_removed_with_its_pipeline() -> None:
    _, pipeline_guards = guards()
    pipeline_guards.get("gone-soon")
    assert REGISTRY.get_sample_value("tidemill_breaker_state", {"name": "database/gone-soon"}) == 0.0
    pipeline_guards.forget("gone-soon")
    assert REGISTRY.get_sample_value("tidemill_breaker_state", {"name": "database/gone-soon"}) is None
