"""Tests of the answer cache: shared computations, freshness, stale answers during an outage, and bounds."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import redis.asyncio

from tidemill_api import cache as cache_module
from tidemill_api.cache import Answer, AnswerCache, CacheEntry
from tidemill_chassis.resilience.config import BreakerOpen, ResilienceConfig

NOBODY = "redis://127.0.0.1:1"


def make(*, max_entries: int = 10, stale_seconds: float = 60.0, url: str = "") -> AnswerCache:
    client = redis.asyncio.Redis.from_url(url, socket_connect_timeout=0.5) if url else None
    return AnswerCache(client, ResilienceConfig().guards().redis, max_entries=max_entries, stale_seconds=stale_seconds)


def answer(text: str = "x", *, age: float = 0.0) -> Answer:
    return Answer(f'{{"v":"{text}"}}'.encode(), f'W/"{text}"', text, 1, False, time.time() - age)


class Source:
    """A computation of answers that counts its calls and raises the error that a test sets."""

    def __init__(self) -> None:
        self.calls = 0
        self.error: Exception | None = None
        self.unchanged = False
        self.gate, self.called = asyncio.Event(), asyncio.Event()
        self.gate.set()

    async def __call__(self, known: Answer | None) -> Answer | None:
        self.calls += 1
        self.called.set()
        number = self.calls
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        return None if self.unchanged and known is not None else answer(str(number))


def run(test: Callable[[], Awaitable[Any]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(20):
            await test()

    asyncio.run(bounded())


async def ask(cache: AnswerCache, source: Source, key: str = "p\nq", ttl: float = 30.0) -> tuple[str, bool]:
    entry, stale = await cache.get(key, "test", ttl, source)
    return entry.answer.version, stale


def test_concurrent_requests_share_a_computation() -> None:
    async def test() -> None:
        cache, source = make(), Source()
        source.gate.clear()
        requests = [asyncio.create_task(ask(cache, source)) for _ in range(50)]
        await asyncio.sleep(0)
        source.gate.set()
        assert set(await asyncio.gather(*requests)) == {("1", False)}
        assert await ask(cache, source) == ("1", False)
        assert source.calls == 1
        assert await ask(cache, source, "p\nother") == ("2", False)

    run(test)


def test_a_cancelled_request_does_not_cancel_the_computation_for_other_requests() -> None:
    async def test() -> None:
        cache, source = make(), Source()
        source.gate.clear()
        first, second = asyncio.create_task(ask(cache, source)), asyncio.create_task(ask(cache, source))
        await source.called.wait()
        first.cancel()
        await asyncio.wait([first])
        source.gate.set()
        assert await second == ("1", False)
        assert (first.cancelled(), source.calls) == (True, 1)

    run(test)


def test_an_unchanged_answer_becomes_fresh_again_in_the_same_entry() -> None:
    """The computation returns None if the known answer has not changed."""

    async def test() -> None:
        cache, source = make(), Source()
        entry, _ = await cache.get("p\nq", "test", 0.0, source)
        assert cache.find_fresh("p\nq") is None
        source.unchanged = True
        second, stale = await cache.get("p\nq", "test", 30.0, source)
        assert (second is entry, second.answer.version, stale, source.calls) == (True, "1", False, 2)
        assert cache.find_fresh("p\nq") is entry

    run(test)


@pytest.mark.parametrize("error", [BreakerOpen("database", 3.0), ConnectionRefusedError(), TimeoutError()])
def test_the_last_answer_is_returned_as_stale_during_an_outage(error: Exception) -> None:
    async def test() -> None:
        cache, source = make(), Source()
        assert await ask(cache, source, ttl=0.0) == ("1", False)
        source.error = error
        assert await ask(cache, source, ttl=0.0) == ("1", True)
        with pytest.raises(type(error)):
            await ask(cache, source, "p\nnever asked")
        source.error = None
        assert (await ask(cache, source, ttl=0.0))[1] is False

    run(test)


def test_an_error_that_is_no_outage_is_raised_instead_of_a_stale_answer() -> None:
    async def test() -> None:
        cache, source = make(), Source()
        await ask(cache, source, ttl=0.0)
        source.error = ZeroDivisionError()
        with pytest.raises(ZeroDivisionError):
            await ask(cache, source, ttl=0.0)

    run(test)


@pytest.mark.parametrize("stale_seconds", [0.0, 5.0])
def test_answers_that_are_too_old_are_not_returned_as_stale(stale_seconds: float) -> None:
    async def test() -> None:
        cache = make(stale_seconds=stale_seconds)

        async def old(known: Answer | None) -> Answer | None:
            if known is not None:
                raise ConnectionRefusedError
            return answer(age=10.0)

        await cache.get("p\nq", "test", 0.0, old)
        with pytest.raises(ConnectionRefusedError):
            await cache.get("p\nq", "test", 0.0, old)

    run(test)


def test_a_stale_answer_is_returned_if_the_database_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """The computation continues, and the next request gets its answer."""
    monkeypatch.setattr(cache_module, "SLOW_SECONDS", 0.05)

    async def test() -> None:
        cache, source = make(), Source()
        await ask(cache, source, ttl=0.0)
        source.gate.clear()
        assert await ask(cache, source) == ("1", True)
        source.gate.set()
        assert await ask(cache, source) == ("2", False)

    run(test)


def test_the_least_recently_used_answers_are_removed_if_memory_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bounds are entries and bytes. Removed answers are no longer fresh."""

    async def test() -> None:
        cache, source = make(max_entries=3), Source()
        entries: list[CacheEntry] = []
        for name in "abc":
            entries.append((await cache.get(f"p\n{name}", "test", 30.0, source))[0])
        assert cache.find_fresh("p\na") is entries[0]
        await ask(cache, source, "p\nd")
        assert [cache.find_fresh(f"p\n{name}") is not None for name in "abcd"] == [True, False, True, True]
        assert entries[1].fresh_until == 0.0
        monkeypatch.setattr(cache_module, "MAX_MEMORY_BYTES", 15)
        await ask(cache, source, "p\ne")
        assert [cache.find_fresh(f"p\n{name}") is not None for name in "acde"] == [False, False, False, True]

    run(test)


def test_every_answer_is_computed_if_the_cache_has_no_entries() -> None:
    async def test() -> None:
        cache, source = make(max_entries=0), Source()
        assert [await ask(cache, source) for _ in range(2)] == [("1", False), ("2", False)]

    run(test)


def test_an_unreachable_redis_is_reported_but_answers_are_computed() -> None:
    async def test() -> None:
        cache, source = make(url=NOBODY), Source()
        assert await ask(cache, source) == ("1", False)
        assert cache.redis_error
        await cache.close()

    run(test)
