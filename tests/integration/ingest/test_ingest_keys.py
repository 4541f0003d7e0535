"""Tests of idempotency keys that several ingest processes share in a real Redis."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest
import redis

from tidemill_chassis.redis_clients import async_client
from tidemill_chassis.resilience.config import Deadline, ResilienceConfig
from tidemill_chassis.web.problems import Problem
from tidemill_contract.runtime import WorkloadSettings
from tidemill_ingest.idempotency import shared
from tidemill_ingest.idempotency.batch_outcome import BatchOutcome
from tidemill_ingest.idempotency.shared import Batch, Claim, SharedKeys
from waiting import eventually_async

pytestmark = pytest.mark.integration

DONE = BatchOutcome(3)  # a batch of three events, all written
PART = BatchOutcome(3, failed={1: 10})  # the second event was not written


def batch(key: str, fingerprint: bytes = b"x") -> Batch:
    return Batch("p", key, fingerprint, 3)


def soon() -> Deadline:
    return Deadline.after(1.0)


def later() -> Deadline:
    return Deadline.after(20)


@contextlib.asynccontextmanager
async def process(
    url: str, namespace: str, owner: str, *, alive: bool = True, lease_seconds: int = 60
) -> AsyncIterator[SharedKeys]:
    """Return the keys as an ingest process has them.

    A process with `alive=False` sends a heartbeat only when it claims a key.
    """
    breaker = {"failures": 2, "open_seconds": 0.2}
    config = ResilienceConfig.model_validate({"breakers": {"redis": breaker}, "timeouts": {"redis_seconds": 10.0}})
    guard = config.guards().redis
    client = async_client(WorkloadSettings(redis_url=url), 10.0, max_connections=100)
    keys = SharedKeys(client, guard, namespace=namespace, owner=owner, lease_seconds=lease_seconds)
    task = asyncio.create_task(keys.run()) if alive else None
    try:
        yield keys
    finally:
        if task is not None:
            task.cancel()
            await asyncio.wait([task])
        await keys.close(2)


def run(scenario: Coroutine[Any, Any, None]) -> None:
    asyncio.run(scenario)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "HEARTBEAT_SECONDS", 0.1)


def test_a_key_has_one_owner_until_its_outcome_is_stored(servers: Any) -> None:
    """Another process waits, at most until the deadline of its request, and gets the outcome of the first."""

    async def scenario() -> None:
        async with process(servers.redis, "one", "a") as a, process(servers.redis, "one", "b") as b:
            claims = [keys.claim(batch("raced"), None, soon()) for keys in (a, b)]
            outcomes = await asyncio.gather(*claims, return_exceptions=True)
            assert sorted(type(outcome).__name__ for outcome in outcomes) == ["Claim", "Problem"]
            assert await a.claim(batch("k"), None, soon()) == Claim()
            with pytest.raises(Problem) as refused:
                await b.claim(batch("k"), None, soon())
            assert (refused.value.status, refused.value.code) == (503, "batch_under_way")
            waiting = asyncio.create_task(b.claim(batch("k"), None, later()))
            await asyncio.sleep(0)
            a.store_outcome(batch("k"), DONE)
            assert await waiting == Claim(DONE, done=True)
            for keys in (a, b):
                assert await keys.claim(batch("k"), None, soon()) == Claim(DONE, done=True)
                with pytest.raises(Problem, match="idempotency_key_reused"):
                    await keys.claim(batch("k", b"y"), None, soon())

    run(scenario())


def test_any_process_may_claim_a_failed_batch_and_the_key_of_a_batch_that_was_not_begun(servers: Any) -> None:
    async def scenario() -> None:
        async with process(servers.redis, "two", "a") as a, process(servers.redis, "two", "b") as b:
            await a.claim(batch("k"), None, soon())
            a.store_outcome(batch("k"), PART)
            assert await b.claim(batch("k"), None, later()) == Claim(PART)
            with pytest.raises(Problem, match="batch_under_way"):
                await a.claim(batch("k"), PART, soon())
            b.store_outcome(batch("k"), None)
            await asyncio.gather(*b._writing.values())
            assert await a.claim(batch("k", b"y"), None, later()) == Claim()

    run(scenario())


def test_keys_of_a_dead_process_can_be_claimed_and_are_marked_unsure(servers: Any) -> None:
    """Events without an acknowledgement may have been written, and the claim says so."""

    async def scenario() -> None:
        async with process(servers.redis, "gone", "b") as b:
            async with process(servers.redis, "gone", "a", alive=False, lease_seconds=1) as a:
                await a.claim(batch("k"), None, soon())
                a.store_outcome(batch("l"), PART)
                await a.claim(batch("l"), PART, soon())
            first = await b.claim(batch("k"), None, later())
            assert first.outcome is not None
            assert (sorted(first.outcome.failed), first.outcome.unsure, first.done) == ([0, 1, 2], True, False)
            second = await b.claim(batch("l"), None, later())
            assert second.outcome == BatchOutcome(3, failed={1: 10}, unsure=True)

    run(scenario())


def test_keys_are_bounded_by_number_and_by_bytes(servers: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest keys are deleted first. The counter of bytes equals the size of all keys."""
    client = redis.Redis.from_url(servers.redis)

    async def fill(keys: SharedKeys, prefix: str, outcome: BatchOutcome) -> None:
        for number in range(40):
            await keys.claim(batch(f"{prefix}{number}"), None, later())
            keys.store_outcome(batch(f"{prefix}{number}"), outcome)
            await asyncio.gather(*keys._writing.values())

    def stored() -> tuple[int, int, int]:
        sizes = [len(client.get(key) or b"") for key in client.scan_iter("tidemill/bounds/p/batches/*")]
        return len(sizes), sum(sizes), int(client.get("tidemill/bounds/p/batches-bytes") or 0)

    async def scenario() -> None:
        async with process(servers.redis, "bounds", "a") as a:
            monkeypatch.setattr(shared, "MAX_KEYS", 10)
            await fill(a, "n", DONE)
            count, size, counted = stored()
            assert (count, size) == (10, counted)
            monkeypatch.setattr(shared, "MAX_KEYS", 1_000)
            monkeypatch.setattr(shared, "MAX_BYTES", 5_000)
            await fill(a, "b", BatchOutcome(3, offsets={index: (0, index) for index in range(100)}))
            count, size, counted = stored()
            assert 4_000 < size <= 5_000
            assert size == counted
            assert (await a.claim(batch("b39"), None, later())).done
            assert not (await a.claim(batch("n0"), None, later())).done
        ttl = [client.ttl(key) for key in client.scan_iter("tidemill/bounds/p/*")]
        assert all(0 < seconds <= 2 * 24 * 3600 for seconds in ttl)

    run(scenario())
    client.close()


def test_a_claim_that_is_sent_twice_is_granted_once(servers: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Redis client repeats a call whose answer was lost. The process must not take its claim for a dead one."""

    async def scenario() -> None:
        async with process(servers.redis, "twice", "a") as a, process(servers.redis, "twice", "b") as b:
            script = a._put_script

            async def twice(*arguments: Any) -> Any:
                await script(*arguments)
                return await script(*arguments)

            monkeypatch.setattr(a, "_put_script", twice)
            assert await a.claim(batch("k"), None, later()) == Claim()
            with pytest.raises(Problem, match="batch_under_way"):
                await b.claim(batch("k"), None, soon())

    run(scenario())


def test_an_outcome_that_was_not_written_does_not_end_the_next_attempt(servers: Any) -> None:
    async def scenario() -> None:
        async with process(servers.redis, "owed", "b") as b, process(servers.redis, "owed", "a", alive=False) as a:
            await a.claim(batch("k"), None, later())
            a.error = "away"
            a.store_outcome(batch("k"), PART)
            await asyncio.gather(*a._writing.values())
            assert list(a._pending_writes) == [batch("k").key_id]
            a.error = ""
            assert await a.claim(batch("k"), PART, later()) == Claim(PART)
            assert not a._pending_writes
            with pytest.raises(Problem, match="batch_under_way"):
                await b.claim(batch("k"), None, soon())

    run(scenario())


def test_a_process_writes_its_claims_again_when_redis_has_lost_its_data(servers: Any) -> None:
    """The loss happens between two heartbeats, and a claim is the first call after it."""
    client = redis.Redis.from_url(servers.redis)

    async def scenario() -> None:
        async with process(servers.redis, "empty", "b") as b, process(servers.redis, "empty", "a", alive=False) as a:
            await a._send_heartbeat()
            await a.claim(batch("before"), None, later())
            client.delete(*client.scan_iter("tidemill/empty/*"))
            await a.claim(batch("after"), None, later())
            await a._send_heartbeat()
            assert list(a._pending_writes) == [batch("before").key_id, batch("after").key_id]
            await asyncio.gather(*(a._start_write(key_id) for key_id in list(a._pending_writes)))
            await a._send_heartbeat()
            assert not a._pending_writes
            for key in ("before", "after"):
                with pytest.raises(Problem, match="batch_under_way"):
                    await b.claim(batch(key), None, soon())

    run(scenario())
    client.close()


def test_a_process_works_without_redis_and_writes_its_keys_after_a_restart(own_servers: Callable[..., Any]) -> None:
    """Without Redis, a process claims keys alone and reports Redis as down.

    After the restart, Redis has lost all data, and the process writes its running and finished batches.
    """
    own = own_servers(needs=("redis",))
    server = own.handles["redis"]

    async def scenario() -> None:
        async with process(own.redis, "away", "a") as a, process(own.redis, "away", "b") as b:
            await a.claim(batch("before"), None, soon())
            server.kill()
            for _ in range(3):
                assert await a.claim(batch("done"), None, later()) == Claim()
            a.store_outcome(batch("done"), DONE)
            assert await a.claim(batch("open"), None, later()) == Claim()
            assert not a.dependency()[0].up
            assert not a.dependency()[0].required
            server.start()
            await eventually_async(
                lambda: not a._pending_writes and all(keys.dependency()[0].up for keys in (a, b)),
                what="both processes use Redis again",
                seconds=20,
            )
            assert await b.claim(batch("done"), None, later()) == Claim(DONE, done=True)
            for key in ("open", "before"):
                with pytest.raises(Problem, match="batch_under_way"):
                    await b.claim(batch(key), None, soon())

    run(scenario())
