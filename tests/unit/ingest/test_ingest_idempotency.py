"""Tests of batches with an Idempotency-Key: each event is written once, however often the batch is sent."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec
import pytest
from confluent_kafka import KafkaError
from hypothesis import given, settings
from hypothesis import strategies as st

from tidemill_chassis.resilience.config import Deadline, ResilienceConfig
from tidemill_chassis.web.problems import Problem
from tidemill_contract.events.decoder import InvalidEvent, Reason
from tidemill_ingest.idempotency.batch_outcome import MAX_BYTES, BatchOutcome, assume_lost, bounded, merge
from tidemill_ingest.idempotency.requests import Attempt, BatchResult, IdempotencyStore, fingerprint
from tidemill_ingest.idempotency.shared import Batch, SharedKeys
from tidemill_ingest.kafka.outcomes import Delivery
from tidemill_ingest.records import Records

TOO_LARGE = KafkaError.MSG_SIZE_TOO_LARGE
DONE = BatchOutcome(3)


def local_store(**options: Any) -> IdempotencyStore:
    """Return the store of an ingest process without Redis."""
    shared = SharedKeys(None, ResilienceConfig().guards().redis, namespace="n", owner="o")
    return IdempotencyStore(shared, **options)


def batch(key: str = "k", body: bytes = b"x", pipeline: str = "p", total: int = 3) -> Batch:
    return Batch(pipeline, key, fingerprint(body), total)


class Kafka:
    """A Kafka whose attempts end when the test says."""

    def __init__(self) -> None:
        self.attempts: list[tuple[BatchOutcome | None, asyncio.Future[BatchOutcome]]] = []
        self.refuses = False
        self.has_begun = asyncio.Event()

    def begin(self, earlier: BatchOutcome | None) -> Attempt:
        if self.refuses:
            raise Problem(503, "kafka_unavailable", "nothing was sent")
        future: asyncio.Future[BatchOutcome] = asyncio.get_running_loop().create_future()
        self.attempts.append((earlier, future))
        self.has_begun.set()

        async def end() -> BatchOutcome:
            return await future

        return Attempt(BatchOutcome(3), end())

    def end_attempt(self, outcome: BatchOutcome) -> None:
        self.attempts[-1][1].set_result(outcome)


def immediate(outcome: BatchOutcome) -> Callable[[BatchOutcome | None], Attempt]:
    """Return a function that begins an attempt with this immediate result."""

    def begin(earlier: BatchOutcome | None) -> Attempt:
        async def end() -> BatchOutcome:
            return outcome

        return Attempt(outcome, end())

    return begin


def run(scenario: Coroutine[Any, Any, None]) -> None:
    asyncio.run(scenario)


def soon() -> Deadline:
    return Deadline.after(0.35)


def later() -> Deadline:
    return Deadline.after(20)


def test_a_repeated_request_gets_the_first_answer_and_another_body_with_its_key_is_refused() -> None:
    async def scenario() -> None:
        store = local_store()
        assert await store.deliver_once(batch(), immediate(DONE), later()) == BatchResult(DONE, False)
        assert await store.deliver_once(batch(), immediate(BatchOutcome(9)), later()) == BatchResult(DONE, True)
        assert await store.deliver_once(batch(pipeline="q"), immediate(BatchOutcome(9)), later()) == BatchResult(
            BatchOutcome(9), False
        )
        with pytest.raises(Problem, match="idempotency_key_reused"):
            await store.deliver_once(batch(body=b"y"), immediate(DONE), later())

    run(scenario())


def test_a_batch_is_not_sent_again_while_its_first_delivery_is_pending() -> None:
    """Requests meanwhile end with 503 at their deadlines. A later request gets the outcome of the delivery."""

    async def scenario() -> None:
        store, kafka = local_store(), Kafka()
        codes = []
        for _ in range(3):
            with pytest.raises(Problem) as refused:
                await store.deliver_once(batch(), kafka.begin, soon())
            codes.append((refused.value.status, refused.value.code, "retry-after" in refused.value.headers))
        assert codes == [(503, "not_acknowledged", True), *[(503, "batch_under_way", True)] * 2]
        assert len(kafka.attempts) == 1
        kafka.end_attempt(DONE)
        assert await store.deliver_once(batch(), kafka.begin, later()) == BatchResult(DONE, True)
        assert len(kafka.attempts) == 1

    run(scenario())


def test_a_retry_of_a_cancelled_request_gets_the_outcome_of_its_delivery() -> None:

    async def scenario() -> None:
        store, kafka = local_store(), Kafka()
        first = asyncio.create_task(store.deliver_once(batch(), kafka.begin, later()))
        await kafka.has_begun.wait()
        first.cancel()
        await asyncio.wait([first])
        second = asyncio.create_task(store.deliver_once(batch(), kafka.begin, later()))
        await asyncio.sleep(0)
        kafka.end_attempt(DONE)
        assert await second == BatchResult(DONE, True)

    run(scenario())


def test_only_the_failed_events_of_a_batch_are_sent_again() -> None:
    """A refused attempt changes nothing. The final answer combines all attempts."""

    async def scenario() -> None:
        store, kafka = local_store(), Kafka()
        part = BatchOutcome(3, failed={1: TOO_LARGE}, offsets={0: (0, 5), 2: (0, 6)})
        whole = BatchOutcome(3, offsets={0: (0, 5), 1: (0, 9), 2: (0, 6)})
        assert await store.deliver_once(batch(), immediate(part), later()) == BatchResult(part, False)
        kafka.refuses = True
        with pytest.raises(Problem, match="kafka_unavailable"):
            await store.deliver_once(batch(), kafka.begin, later())
        kafka.refuses = False
        again = asyncio.create_task(store.deliver_once(batch(), kafka.begin, later()))
        await kafka.has_begun.wait()
        assert kafka.attempts[0][0] == part
        kafka.end_attempt(whole)
        assert await again == BatchResult(whole, False)
        assert await store.deliver_once(batch(), kafka.begin, later()) == BatchResult(whole, True)

    run(scenario())


def test_a_batch_that_wrote_nothing_releases_its_key() -> None:
    """If it is uncertain whether events were written, the key is kept."""

    async def scenario() -> None:
        store, kafka = local_store(), Kafka()
        kafka.refuses = True
        with pytest.raises(Problem):
            await store.deliver_once(batch(), kafka.begin, later())
        nothing = BatchOutcome(3, failed=dict.fromkeys(range(3), TOO_LARGE))
        await store.deliver_once(batch(), immediate(nothing), later())
        assert await store.deliver_once(batch(body=b"y"), immediate(DONE), later()) == BatchResult(DONE, False)
        unsure = assume_lost(None, 3)
        await store.deliver_once(batch("l"), immediate(unsure), later())
        with pytest.raises(Problem, match="idempotency_key_reused"):
            await store.deliver_once(batch("l", b"y"), immediate(DONE), later())

    run(scenario())


def test_concurrent_requests_with_the_same_key_run_in_turn() -> None:
    """Requests run until a request succeeds. All later requests get the answer of that request."""

    async def scenario() -> None:
        store, begun, running = local_store(), 0, 0

        def begin(earlier: BatchOutcome | None) -> Attempt:
            nonlocal begun, running
            assert running == 0
            begun, running = begun + 1, running + 1
            if begun == 1:
                running = 0
                raise Problem(503, "kafka_unavailable", "later")

            async def end() -> BatchOutcome:
                nonlocal running
                await asyncio.sleep(0)
                running -= 1
                return DONE if begun == 3 else BatchOutcome(3, failed={0: TOO_LARGE, 1: TOO_LARGE, 2: TOO_LARGE})

            return Attempt(DONE, end())

        requests = [store.deliver_once(batch(), begin, later()) for _ in range(10)]
        answers = await asyncio.gather(*requests, return_exceptions=True)
        assert begun == 3
        assert sum(isinstance(a, Problem) for a in answers) == 1
        results = [a for a in answers if isinstance(a, BatchResult)]
        assert [bool(f.outcome.failed) for f in results] == [True] + [False] * 8
        assert [f.replayed for f in results] == [False, False] + [True] * 7

    run(scenario())


def test_a_request_that_does_not_wait_is_answered_when_its_events_are_queued() -> None:
    async def scenario() -> None:
        store, kafka = local_store(), Kafka()
        assert await store.deliver_once(batch(), kafka.begin, later(), wait=False) == BatchResult(
            BatchOutcome(3), False
        )
        assert await store.deliver_once(batch(), kafka.begin, later(), wait=False) == BatchResult(BatchOutcome(3), True)
        kafka.end_attempt(BatchOutcome(3, failed={0: TOO_LARGE}))
        await asyncio.gather(*store._tasks)
        await asyncio.sleep(0)
        assert await store.deliver_once(batch(), kafka.begin, later(), wait=False) == BatchResult(
            BatchOutcome(3), False
        )
        assert [before for before, _ in kafka.attempts] == [None, BatchOutcome(3, failed={0: TOO_LARGE})]
        kafka.end_attempt(DONE)

    run(scenario())


@pytest.mark.parametrize("key", ["", "k" * 256])
def test_an_empty_or_too_long_key_is_refused(key: str) -> None:
    async def scenario() -> None:
        with pytest.raises(Problem, match="invalid_idempotency_key"):
            await local_store().deliver_once(batch(key), immediate(DONE), later())

    run(scenario())


def test_the_oldest_answers_are_deleted_if_memory_is_full() -> None:
    """Batches under way are kept."""

    async def scenario() -> None:
        store, kafka = local_store(max_bytes=10_000), Kafka()
        with pytest.raises(Problem):
            await store.deliver_once(batch("open"), kafka.begin, soon())
        offsets = {index: (0, index + 10**9) for index in range(100)}
        for number in range(100):
            await store.deliver_once(batch(f"k{number}"), immediate(BatchOutcome(100, offsets=offsets)), later())
        answers = [await store.deliver_once(batch(f"k{n}"), immediate(DONE), later()) for n in reversed(range(100))]
        assert [answer.replayed for answer in answers].count(True) == 7
        assert all(answer.replayed for answer in answers[:7])
        with pytest.raises(Problem, match="batch_under_way"):
            await store.deliver_once(batch("open"), kafka.begin, soon())

    run(scenario())


def test_keys_are_forgotten_after_a_day() -> None:
    async def scenario() -> None:
        now = [0.0]
        store = local_store(clock=lambda: now[0])
        await store.deliver_once(batch(), immediate(DONE), later())
        now[0] = 24 * 3600 + 1
        assert await store.deliver_once(batch(), immediate(BatchOutcome(9)), later()) == BatchResult(
            BatchOutcome(9), False
        )

    run(scenario())


def test_the_stored_outcome_of_a_batch_is_bounded() -> None:
    """The bound holds for many events and for long field names of the sender."""
    large = BatchOutcome(
        10_000,
        invalid={i: ("unknown_field", "f" * 5_000, "d" * 5_000) for i in range(100)},
        failed=dict.fromkeys(range(200), TOO_LARGE),
        offsets={i: (0, 10**12 + i) for i in range(200, 10_000)},
    )
    kept = bounded(large)
    assert len(msgspec.msgpack.encode(kept)) < MAX_BYTES
    assert (kept.total, kept.failed, len(kept.invalid)) == (large.total, large.failed, 100)
    assert bounded(DONE) is DONE
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(large), type=BatchOutcome) == large


@settings(max_examples=200)
@given(st.integers(1, 30), st.randoms(use_true_random=False))
def test_merged_attempts_contain_each_event_once(total: int, rnd: random.Random) -> None:
    """Each event keeps the offset and the reason of the attempt that wrote the event."""
    known: BatchOutcome | None = None
    invalid_events: dict[int, tuple[str, str | None, str]] = {}
    offsets: dict[int, tuple[int, int]] = {}
    for attempt in range(4):
        indexes = list(range(total)) if known is None else sorted(known.failed)
        assert not set(indexes) & set(offsets)
        invalid = {
            i: InvalidEvent(Reason.MISTYPED, f"f{attempt}", "d") for i in range(len(indexes)) if rnd.random() < 0.3
        }
        records = Records([b""] * len(indexes), None, {}, dict(invalid))
        failed = {i: KafkaError(TOO_LARGE) for i in range(len(indexes)) if rnd.random() < 0.5}
        written = {i: (0, attempt * 100 + i) for i in range(len(indexes)) if i not in failed}
        known = merge(known, indexes, records, Delivery(failed, dict(written)))
        offsets |= {indexes[i]: offset for i, offset in written.items()}
        invalid_events |= {indexes[i]: ("mistyped", f"f{attempt}", "d") for i in invalid if i not in failed}
        assert known.offsets == offsets
        assert {i: row for i, row in known.invalid.items() if i not in known.failed} == invalid_events
        assert set(known.failed) | set(offsets) == set(range(total))
        counts = known.to_outcome(None).counts
        assert counts["retry"] == len(known.failed)
        assert sum(counts.values()) == total
