"""The answer cache: one computation however many ask, freshness, stale answers in place of an outage, bounds."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import redis.asyncio

from tidemill_api import cache as cache_module
from tidemill_api.cache import Answer, AnswerCache, Slot
from tidemill_chassis.resilience.config import BreakerOpen, ResilienceConfig

NOBODY = "redis://127.0.0.1:1"


def make(*, max_entries: int = 10, stale_seconds: float = 60.0, url: str = "") -> AnswerCache:
    client = redis.asyncio.Redis.from_url(url, socket_connect_timeout=0.5) if url else None
    return AnswerCache(client, ResilienceConfig().guards().redis, max_entries=max_entries, stale_seconds=stale_seconds)


def answer(text: str = "x", *, age: float = 0.0) -> Answer:
    return Answer(f'{{"v":"{text}"}}'.encode(), f'W/"{text}"', text, 1, False, time.time() - age)


class Source:
    """What answers are computed by; counts, and fails when told to."""

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
    slot, stale = await cache.get(key, "test", ttl, source)
    return slot.answer.version, stale


def test_many_askers_cost_one_computation() -> None:
    async def test() -> None:
        cache, source = make(), Source()
        source.gate.clear()
        asking = [asyncio.create_task(ask(cache, source)) for _ in range(50)]
        await asyncio.sleep(0)
        source.gate.set()
        assert set(await asyncio.gather(*asking)) == {("1", False)}
        assert await ask(cache, source) == ("1", False)
        assert source.calls == 1
        assert await ask(cache, source, "p\nother") == ("2", False)

    run(test)


def test_an_asker_that_leaves_takes_nothing_from_the_others() -> None:
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


def test_an_answer_that_is_right_still_is_kept() -> None:
    """None from the computation means: what is known is right; its time begins anew, in the same slot."""

    async def test() -> None:
        cache, source = make(), Source()
        slot, _ = await cache.get("p\nq", "test", 0.0, source)
        assert cache.fresh("p\nq") is None
        source.unchanged = True
        again, stale = await cache.get("p\nq", "test", 30.0, source)
        assert (again is slot, again.answer.version, stale, source.calls) == (True, "1", False, 2)
        assert cache.fresh("p\nq") is slot

    run(test)


@pytest.mark.parametrize("error", [BreakerOpen("database", 3.0), ConnectionRefusedError(), TimeoutError()])
def test_an_outage_brings_the_last_answer_marked_stale(error: Exception) -> None:
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


def test_a_defect_is_no_outage() -> None:
    """What is wrong with us is not hidden behind an old answer."""

    async def test() -> None:
        cache, source = make(), Source()
        await ask(cache, source, ttl=0.0)
        source.error = ZeroDivisionError()
        with pytest.raises(ZeroDivisionError):
            await ask(cache, source, ttl=0.0)

    run(test)


@pytest.mark.parametrize("stale_seconds", [0.0, 5.0])
def test_answers_that_are_too_old_are_not_given(stale_seconds: float) -> None:
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


def test_a_slow_database_is_not_waited_for_when_an_answer_is_at_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """The computation goes on, and its answer is there for the next asker."""
    monkeypatch.setattr(cache_module, "SLOW_SECONDS", 0.05)

    async def test() -> None:
        cache, source = make(), Source()
        await ask(cache, source, ttl=0.0)
        source.gate.clear()
        assert await ask(cache, source) == ("1", True)
        source.gate.set()
        assert await ask(cache, source) == ("2", False)

    run(test)


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """By entries and by bytes; what was used last stays, what goes is not fresh any more."""

    async def test() -> None:
        cache, source = make(max_entries=3), Source()
        slots: list[Slot] = []
        for name in "abc":
            slots.append((await cache.get(f"p\n{name}", "test", 30.0, source))[0])
        assert cache.fresh("p\na") is slots[0]
        await ask(cache, source, "p\nd")
        assert [cache.fresh(f"p\n{name}") is not None for name in "abcd"] == [True, False, True, True]
        assert slots[1].fresh_until == 0.0
        monkeypatch.setattr(cache_module, "MAX_MEMORY_BYTES", 15)
        await ask(cache, source, "p\ne")
        assert [cache.fresh(f"p\n{name}") is not None for name in "acde"] == [False, False, False, True]

    run(test)


def test_without_memory_every_answer_is_computed() -> None:
    async def test() -> None:
        cache, source = make(max_entries=0), Source()
        assert [await ask(cache, source) for _ in range(2)] == [("1", False), ("2", False)]

    run(test)


def test_redis_away_is_noted_and_nothing_more() -> None:
    async def test() -> None:
        cache, source = make(url=NOBODY), Source()
        assert await ask(cache, source) == ("1", False)
        assert cache.redis_error
        await cache.close()

    run(test)
