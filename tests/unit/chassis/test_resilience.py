from __future__ import annotations

import asyncio
import contextlib
import itertools
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis
import yaml
from confluent_kafka import KafkaError, KafkaException
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import REGISTRY

from tidemill_chassis.resilience import failures
from tidemill_chassis.resilience.config import BreakerOpen, ConfigError, Deadline, DeadlineExceeded, ResilienceConfig
from tidemill_chassis.resilience.guard import Guard, Policy

ROOT = Path(__file__).resolve().parents[3]
_names = (f"test_guard_{n}" for n in itertools.count())


class Broken(Exception):
    """The dependency is to blame; repeating helps."""


class Refused(Exception):
    """The dependency is to blame; repeating does not help."""


class UserError(Exception):
    """The caller is to blame."""


class Time:
    """A clock that moves only when told, or when somebody sleeps by it."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.sleeps: list[float] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        self.now += seconds

    async def asleep(self, seconds: float) -> None:
        self.sleep(seconds)


def make(time: Time, **changes: Any) -> Guard:
    policy: dict[str, Any] = {
        "failures": 3,
        "open_seconds": 60.0,
        "timeout_seconds": 10.0,
        "retries": 0,
        "initial_seconds": 1.0,
        "factor": 2.0,
        "max_seconds": 30.0,
        "jitter_seconds": 0.0,
        "is_failure": lambda error: isinstance(error, (Broken, Refused, TimeoutError)),
        "is_retryable": lambda error: isinstance(error, Broken),
    }
    return Guard(next(_names), Policy(**(policy | changes)), clock=time, sleep=time.sleep, async_sleep=time.asleep)


def raising(error: BaseException) -> Callable[[], Any]:
    def fn() -> Any:
        raise error

    return fn


def break_open(guard: Guard) -> None:
    for _ in range(guard.policy.failures):
        with pytest.raises(Broken):
            guard.call(raising(Broken()), retry=False)
    assert guard.state == "open"


def run(guard: Guard, mode: str, fn: Callable[[], Any], **options: Any) -> Any:
    """Make one call, synchronously or not: both ways have to behave the same."""
    if mode == "sync":
        return guard.call(fn, **options)

    async def afn() -> Any:
        return fn()

    return asyncio.run(guard.acall(afn, **options))


both = pytest.mark.parametrize("mode", ["sync", "async"])


# The breaker


@both
def test_opens_after_consecutive_failures_and_refuses_at_once(mode: str) -> None:
    time = Time()
    guard = make(time)
    called = []
    for _ in range(3):
        assert guard.state == "closed"
        with pytest.raises(Broken):
            run(guard, mode, raising(Broken()))
    assert guard.state == "open"
    with pytest.raises(BreakerOpen) as refused:
        run(guard, mode, lambda: called.append(1))
    assert (refused.value.name, refused.value.retry_after_seconds, called) == (guard.name, 60.0, [])
    time.now += 20
    assert guard.retry_after_seconds == 40.0


@both
def test_a_success_forgets_earlier_failures(mode: str) -> None:
    guard = make(Time())
    for _ in range(5):
        for _ in range(2):
            with pytest.raises(Broken):
                run(guard, mode, raising(Broken()))
        assert run(guard, mode, lambda: 7) == 7
    assert guard.state == "closed"


@both
def test_user_errors_never_open_it(mode: str) -> None:
    guard = make(Time())
    for _ in range(20):
        with pytest.raises(UserError):
            run(guard, mode, raising(UserError()))
    assert guard.state == "closed"


@both
def test_a_user_error_between_failures_proves_nothing(mode: str) -> None:
    guard = make(Time())
    for error in (Broken(), Broken(), UserError(), Broken()):
        with pytest.raises(type(error)):
            run(guard, mode, raising(error))
    assert guard.state == "open"


@both
@pytest.mark.parametrize(
    ("outcome", "after"),
    [
        (lambda: 1, "closed"),
        (raising(Broken()), "open"),
        (raising(UserError()), "half_open"),
    ],
    ids=["answered: closes", "failed: opens again", "the caller's mistake: another trial"],
)
def test_the_trials_outcome_decides_the_breakers_state(mode: str, outcome: Callable[[], Any], after: str) -> None:
    time = Time()
    guard = make(time)
    break_open(guard)
    time.now += 59.9
    with pytest.raises(BreakerOpen):
        run(guard, mode, lambda: 1)
    time.now += 0.1
    with contextlib.suppress(Broken, UserError):
        run(guard, mode, outcome)
    assert guard.state == after
    if after == "open":
        assert guard.retry_after_seconds == 60.0
    else:
        assert run(guard, mode, lambda: 5) == 5
        assert guard.state == "closed"


def test_half_open_lets_exactly_one_of_many_threads_through() -> None:
    time = Time()
    guard = make(time)
    break_open(guard)
    time.now += 60
    entered, release = threading.Event(), threading.Event()
    calls, refusals = [], []

    def slow() -> None:
        calls.append(1)
        entered.set()
        assert release.wait(10)

    trial = threading.Thread(target=guard.call, args=(slow,))
    trial.start()
    assert entered.wait(10)

    def other() -> None:
        try:
            guard.call(lambda: calls.append(2))
        except BreakerOpen as refused:
            refusals.append(refused)

    others = [threading.Thread(target=other) for _ in range(8)]
    for thread in others:
        thread.start()
    for thread in others:
        thread.join(10)
    assert (calls, len(refusals), guard.state) == ([1], 8, "half_open")
    assert all(refused.retry_after_seconds > 0 for refused in refusals)
    release.set()
    trial.join(10)
    assert guard.state == "closed"


def test_half_open_lets_exactly_one_of_many_tasks_through() -> None:
    time = Time()
    guard = make(time)
    break_open(guard)
    time.now += 60

    async def scenario() -> list[Any]:
        gate = asyncio.Event()

        async def slow() -> str:
            await gate.wait()
            return "trial"

        tasks = [asyncio.create_task(guard.acall(slow)) for _ in range(10)]
        await asyncio.sleep(0)
        gate.set()
        return list(await asyncio.gather(*tasks, return_exceptions=True))

    results = asyncio.run(scenario())
    assert results[0] == "trial"
    assert [type(result) for result in results[1:]] == [BreakerOpen] * 9
    assert guard.state == "closed"


def test_a_call_begun_before_the_breaker_opened_decides_nothing() -> None:
    """Slow answers from before the outage neither close a half-open breaker nor prolong the pause of an open one."""
    time = Time()
    guard = make(time)
    old_good, old_bad = guard.admit(), guard.admit()
    break_open(guard)
    time.now += 30
    guard.settle(old_bad, Broken())
    assert guard.retry_after_seconds == 30.0
    time.now += 30
    trial = guard.admit()
    guard.settle(old_good)
    assert guard.state == "half_open"
    guard.settle(old_bad, Broken())
    assert guard.state == "half_open"
    guard.settle(trial)
    assert guard.state == "closed"


def test_a_lost_trial_is_given_up_after_the_timeout() -> None:
    time = Time()
    guard = make(time)
    break_open(guard)
    time.now += 60
    lost = guard.admit()
    with pytest.raises(BreakerOpen):
        guard.admit()
    time.now += guard.timeout_seconds
    second = guard.admit()
    guard.settle(lost)
    assert guard.state == "half_open"
    guard.settle(second)
    assert guard.state == "closed"


@pytest.mark.parametrize(
    ("first", "longest", "pauses"),
    [
        (2.0, 60.0, [2, 5, 10, 20, 50, 60, 60]),
        (2.0, 30.0, [2, 5, 10, 20, 30, 30]),
        (0.5, 3.0, [0.5, 1.25, 2.5, 3, 3]),
        (9.0, 3.0, [3, 3]),
        (None, 60.0, [60, 60]),
    ],
)
def test_pauses_of_one_outage_grow_up_to_the_longest(first: float | None, longest: float, pauses: list[float]) -> None:
    time = Time()
    guard = make(time, failures=1, first_pause_seconds=first, open_seconds=longest)
    for _ in range(2):  # the next outage begins anew
        break_open(guard)
        for pause in pauses:
            assert guard.retry_after_seconds == pytest.approx(pause)
            time.now += pause
            with pytest.raises(Broken):
                guard.call(raising(Broken()))
        time.now += 60
        assert guard.call(lambda: 1) == 1
        assert guard.state == "closed"


def look(guard: Guard, mode: str, fn: Callable[[], Any]) -> Any:
    if mode == "sync":
        return guard.look(fn)

    async def afn() -> Any:
        return fn()

    return asyncio.run(guard.alook(afn))


@both
def test_a_look_closes_an_open_breaker_and_its_failure_prolongs_nothing(mode: str) -> None:
    time = Time()
    guard = make(time)
    break_open(guard)
    time.now += 20
    with pytest.raises(Broken):
        look(guard, mode, raising(Broken()))
    assert (guard.state, guard.retry_after_seconds) == ("open", 40.0)
    assert look(guard, mode, lambda: 7) == 7
    assert guard.state == "closed"
    for _ in range(guard.policy.failures):  # of a closed one a look is a call
        with pytest.raises(Broken):
            look(guard, mode, raising(Broken()))
    assert guard.state == "open"


def test_a_look_ends_soon_while_the_breaker_is_open() -> None:
    guard = make(Time(), timeout_seconds=0.05)
    break_open(guard)
    with pytest.raises(TimeoutError):
        asyncio.run(guard.alook(lambda: asyncio.sleep(60)))
    assert guard.state == "open"


def test_an_answer_to_what_was_asked_before_the_outage_ends_nothing() -> None:
    time = Time()
    guard = make(time)
    before = time.now
    time.now += 1
    break_open(guard)
    guard.recovered(before)
    assert guard.state == "open"
    time.now += 60
    trial = guard.admit()
    guard.recovered(time.now)
    assert guard.state == "closed"
    guard.settle(trial, Broken())
    assert guard.call(lambda: 1) == 1, "the trial under way is of an outage that is over"


def test_cancellation_is_no_failure_and_frees_the_trial() -> None:
    time = Time()
    guard = make(time, failures=1)
    break_open(guard)
    time.now += 60

    async def scenario() -> None:
        task = asyncio.create_task(guard.acall(asyncio.Event().wait))
        await asyncio.sleep(0)
        assert guard.state == "half_open"
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(scenario())
    assert guard.state == "half_open"
    assert guard.call(lambda: 3) == 3
    assert guard.state == "closed"


# Loops


def test_a_loop_may_ask_again_until_it_has_told() -> None:
    time = Time()
    guard = make(time)
    for _ in range(3):
        assert guard.allow()
        guard.failure()
    assert not guard.allow()
    time.now += 60
    assert [guard.allow() for _ in range(3)] == [True] * 3
    others: list[bool] = []
    thread = threading.Thread(target=lambda: (others.append(guard.allow()), guard.success()))
    thread.start()
    thread.join(10)
    assert (others, guard.state) == ([False], "half_open")
    guard.success()
    assert guard.state == "closed"


def test_a_loops_error_is_judged_when_given() -> None:
    guard = make(Time(), failures=1)
    assert guard.allow()
    guard.failure(UserError())
    assert guard.state == "closed"
    guard.failure(Broken())
    assert guard.state == "open"


def test_two_tasks_of_one_thread_are_two_loops() -> None:
    time = Time()
    guard = make(time, failures=1)
    guard.failure()
    time.now += 60

    async def ask() -> bool:
        return guard.allow()

    async def scenario() -> list[bool]:
        return list(await asyncio.gather(ask(), ask()))

    assert asyncio.run(scenario()) == [True, False]


# Retries


@both
@pytest.mark.parametrize(
    ("fails", "policy", "sleeps", "raises"),
    [
        (1, {"retries": 3}, [1], None),
        (3, {"retries": 3}, [1, 2, 4], None),
        (4, {"retries": 3}, [1, 2, 4], Broken),
        (9, {"retries": 2, "initial_seconds": 0.5}, [0.5, 1], Broken),
        (9, {"retries": 4, "factor": 3.0, "max_seconds": 5.0}, [1, 3, 5, 5], Broken),
        (9, {"retries": 0}, [], Broken),
    ],
    ids=["once", "all", "one too many", "other start", "factor and maximum", "none wanted"],
)
def test_retries_wait_longer_each_time_up_to_the_maximum(
    mode: str, fails: int, policy: dict[str, Any], sleeps: list[float], raises: type | None
) -> None:
    time = Time()
    guard = make(time, failures=100, **policy)
    attempts = iter([raising(Broken())] * fails)

    def fn() -> Any:
        return next(attempts, lambda: "done")()

    if raises:
        with pytest.raises(raises):
            run(guard, mode, fn)
    else:
        assert run(guard, mode, fn) == "done"
    assert time.sleeps == sleeps


@both
@pytest.mark.parametrize(
    ("error", "options"),
    [(UserError(), {}), (Refused(), {}), (Broken(), {"retry": False})],
    ids=["the caller's mistake", "repeating cannot help", "must not be done twice"],
)
def test_what_is_not_repeated(mode: str, error: Exception, options: dict[str, Any]) -> None:
    time = Time()
    guard = make(time, retries=3, failures=100)
    calls = []

    def fn() -> Any:
        calls.append(1)
        raise error

    with pytest.raises(type(error)) as raised:
        run(guard, mode, fn, **options)
    assert (raised.value, calls, time.sleeps) == (error, [1], [])


@both
def test_no_repeat_once_its_own_failures_have_opened_the_breaker(mode: str) -> None:
    time = Time()
    guard = make(time, retries=9, failures=3)
    calls = []

    def fn() -> Any:
        calls.append(1)
        raise Broken

    with pytest.raises(Broken):
        run(guard, mode, fn)
    assert (len(calls), time.sleeps, guard.state) == (3, [1, 2], "open")


@both
def test_no_repeat_when_another_has_opened_the_breaker_during_the_wait(mode: str) -> None:
    time = Time()
    guard = make(time, retries=9, failures=3)
    calls = []

    def fn() -> Any:
        calls.append(1)
        for _ in range(2):
            guard.failure()  # somebody else's calls, meanwhile; the third is our own
        raise Broken

    with pytest.raises(Broken):
        run(guard, mode, fn)
    assert (len(calls), time.sleeps) == (1, [])

    time = Time()
    guard = make(time, retries=9, failures=3)
    sleep = time.sleep
    time.sleep = lambda seconds: (sleep(seconds), guard.failure(), guard.failure())  # type: ignore[assignment]
    guard._sleep = time.sleep
    with pytest.raises(BreakerOpen):
        run(guard, mode, raising(Broken()))
    assert time.sleeps == [1]


@both
@given(
    budget=st.floats(0.01, 40),
    cost=st.floats(0, 6),
    retries=st.integers(0, 6),
    factor=st.floats(1, 4),
    jitter=st.sampled_from([0.0, 0.7]),
)
@settings(max_examples=60, deadline=None)
def test_no_repeat_begins_after_the_deadline(
    mode: str, budget: float, cost: float, retries: int, factor: float, jitter: float
) -> None:
    time = Time()
    guard = make(time, retries=retries, failures=1000, factor=factor, jitter_seconds=jitter, timeout_seconds=1e6)
    deadline = Deadline.after(budget, time)
    begun = []

    def fn() -> Any:
        begun.append(time.now)
        time.now += cost
        raise Broken

    with pytest.raises((Broken, DeadlineExceeded)):
        run(guard, mode, fn, deadline=deadline)
    assert 1 <= len(begun) <= retries + 1
    assert all(at < deadline.at for at in begun)
    assert time.now <= deadline.at + cost


@both
def test_a_wait_that_the_deadline_does_not_leave_is_skipped(mode: str) -> None:
    time = Time()
    guard = make(time, retries=3, failures=100)
    with pytest.raises(Broken):
        run(guard, mode, raising(Broken()), deadline=Deadline.after(6.9, time))
    assert time.sleeps == [1, 2]  # 4 more seconds would end at 7


@both
def test_nothing_is_called_when_the_deadline_is_over(mode: str) -> None:
    time = Time()
    guard = make(time, failures=1)
    called = []
    with pytest.raises(DeadlineExceeded):
        run(guard, mode, lambda: called.append(1), deadline=Deadline.after(0, time))
    assert (called, guard.state) == ([], "closed")


def test_an_attempt_is_cut_after_the_timeout_and_counts() -> None:
    guard = make(Time(), timeout_seconds=0.01, failures=1)
    with pytest.raises(TimeoutError):
        asyncio.run(guard.acall(lambda: asyncio.Event().wait()))
    assert guard.state == "open"


def test_an_attempt_cut_by_the_deadline_does_not_count() -> None:
    time = Time()
    guard = make(time, timeout_seconds=10, failures=1)
    with pytest.raises(DeadlineExceeded):
        asyncio.run(guard.acall(lambda: asyncio.Event().wait(), deadline=Deadline.after(0.01, time)))
    assert guard.state == "closed"


@both
def test_arguments_and_traceback_reach_the_caller(mode: str) -> None:
    guard = make(Time(), retries=1)
    assert guard.call(lambda a, b: a + b, 1, 2) == 3
    with pytest.raises(UserError) as raised:
        run(guard, mode, raising(UserError("where")))
    assert raised.traceback[-1].name == "fn"


def test_a_hundred_threads_see_a_consistent_breaker() -> None:
    """Whatever the interleaving: after enough failures in a row it is open, and exactly one trial comes of it."""
    time = Time()
    guard = make(time, failures=50)
    barrier = threading.Barrier(20)

    def work() -> None:
        barrier.wait(10)
        for _ in range(50):
            try:
                guard.call(raising(Broken()), retry=False)
            except (Broken, BreakerOpen):
                continue

    threads = [threading.Thread(target=work) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert guard.state == "open"
    assert _sample("tidemill_breaker_transitions_total", name=guard.name, state="open") == 1


# Breaker as a model


@given(st.lists(st.sampled_from(["good", "bad", "user", "wait 30", "wait 60"]), max_size=60))
@settings(max_examples=200, deadline=None)
def test_the_breaker_is_the_textbooks(steps: list[str]) -> None:
    time = Time()
    guard = make(time, failures=3)
    state, count, opened = "closed", 0, 0.0
    for step in steps:
        if step.startswith("wait"):
            time.now += float(step.split()[1])
            continue
        if state == "open" and time.now - opened < 60:
            with pytest.raises(BreakerOpen):
                guard.call(lambda: 1)
            continue
        if state == "open":
            state = "half_open"
        outcome = {"good": lambda: 1, "bad": raising(Broken()), "user": raising(UserError())}[step]
        with contextlib.suppress(Broken, UserError):
            guard.call(outcome)
        if step == "good":
            state, count = "closed", 0
        elif step == "bad":
            count += 1
            if state == "half_open" or count >= 3:
                state, count, opened = "open", 0, time.now
        assert guard.state == state


def _sample(metric: str, **labels: str) -> float | None:
    return REGISTRY.get_sample_value(metric, labels)


def test_states_and_retries_are_metrics() -> None:
    time = Time()
    guard = make(time, retries=1, failures=2)
    assert _sample("tidemill_breaker_state", name=guard.name) == 0
    with pytest.raises(Broken):
        guard.call(raising(Broken()))
    assert _sample("tidemill_breaker_state", name=guard.name) == 2
    assert _sample("tidemill_retries_total", name=guard.name) == 1
    time.now += 60
    assert guard.allow()
    assert _sample("tidemill_breaker_state", name=guard.name) == 1
    guard.success()
    assert _sample("tidemill_breaker_state", name=guard.name) == 0
    for state in ("open", "half_open", "closed"):
        assert _sample("tidemill_breaker_transitions_total", name=guard.name, state=state) == 1


def test_a_breaker_that_alternates_between_open_and_half_open_is_shown_as_open() -> None:
    time = Time()
    guard = make(time, failures=1, first_pause_seconds=1.0)
    break_open(guard)
    for number in range(4):
        time.now += 60
        ticket = guard.admit()
        assert guard.state == "half_open"
        assert _sample("tidemill_breaker_state", name=guard.name) == (2 if number else 1)
        guard.settle(ticket, Broken())
        assert _sample("tidemill_breaker_state", name=guard.name) == 2
    guard.recovered(time.now)
    assert _sample("tidemill_breaker_state", name=guard.name) == 0


# What counts


def _kafka(code: int, *, fatal: bool = False, retriable: bool = False) -> KafkaException:
    return KafkaException(KafkaError(code, "x", fatal, retriable))


@pytest.mark.parametrize(
    ("judge", "error", "failed", "repeat"),
    [
        ("database", psycopg.OperationalError("connection refused"), True, True),
        ("database", psycopg.InterfaceError("connection is closed"), True, True),
        ("database", psycopg.errors.AdminShutdown(), True, True),
        ("database", psycopg.errors.ConnectionFailure(), True, True),
        ("database", psycopg.errors.TooManyConnections(), True, True),
        ("database", psycopg.errors.DiskFull(), True, True),
        ("database", psycopg.errors.ReadOnlySqlTransaction(), True, True),
        ("database", psycopg.errors.QueryCanceled(), True, False),
        ("database", psycopg.errors.InvalidPassword(), True, False),
        ("database", psycopg.errors.SerializationFailure(), False, True),
        ("database", psycopg.errors.DeadlockDetected(), False, True),
        ("database", psycopg.errors.LockNotAvailable(), False, True),
        ("database", psycopg.errors.SyntaxError(), False, False),
        ("database", psycopg.errors.UndefinedTable(), False, False),
        ("database", psycopg.errors.InsufficientPrivilege(), False, False),
        ("database", psycopg.errors.NumericValueOutOfRange(), False, False),
        ("database", psycopg.errors.UniqueViolation(), False, False),
        ("database", psycopg.ProgrammingError("the query has 2 placeholders"), False, False),
        ("database", psycopg.DataError("NUL"), False, False),
        ("database", TimeoutError(), True, True),
        ("database", ConnectionResetError(), True, True),
        ("database", KeyError("our own bug"), False, False),
        ("redis", redis.ConnectionError(), True, True),
        ("redis", redis.TimeoutError(), True, True),
        ("redis", redis.exceptions.BusyLoadingError(), True, True),
        ("redis", redis.exceptions.ReadOnlyError(), True, True),
        ("redis", redis.exceptions.OutOfMemoryError(), True, False),
        ("redis", redis.AuthenticationError(), True, False),
        ("redis", redis.ResponseError("WRONGTYPE"), False, False),
        ("redis", redis.DataError(), False, False),
        ("redis", OSError(), True, True),
        ("redis", ValueError(), False, False),
        ("kafka", _kafka(KafkaError._ALL_BROKERS_DOWN), True, True),
        ("kafka", _kafka(KafkaError._TRANSPORT), True, True),
        ("kafka", _kafka(KafkaError._MSG_TIMED_OUT), True, True),
        ("kafka", _kafka(KafkaError.NOT_ENOUGH_REPLICAS, retriable=True), True, True),
        ("kafka", _kafka(KafkaError._FATAL, fatal=True), True, False),
        ("kafka", _kafka(KafkaError.MSG_SIZE_TOO_LARGE), False, False),
        ("kafka", _kafka(KafkaError.UNKNOWN_TOPIC_OR_PART), False, False),
        ("kafka", _kafka(KafkaError._UNKNOWN_TOPIC), False, False),
        ("kafka", _kafka(KafkaError.TOPIC_AUTHORIZATION_FAILED), False, False),
        ("kafka", _kafka(KafkaError.OFFSET_OUT_OF_RANGE), False, False),
        ("kafka", _kafka(KafkaError._PARTITION_EOF), False, False),
        ("kafka", BufferError("Local: Queue full"), False, False),
        ("kafka", TimeoutError(), True, True),
        ("kafka", UnicodeDecodeError("utf-8", b"\xff", 0, 1, "x"), False, False),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else str(value),
)
def test_what_counts_and_what_is_repeated(judge: str, error: Exception, failed: bool, repeat: bool) -> None:
    assert getattr(failures, f"{judge}_failed")(error) is failed
    assert getattr(failures, f"{judge}_retryable")(error) is repeat


@pytest.mark.parametrize("code", [KafkaError._TRANSPORT, KafkaError.MSG_SIZE_TOO_LARGE])
def test_a_delivery_callbacks_error_is_judged_like_the_exception(code: int) -> None:
    """Delivery callbacks are handed a KafkaError, which is no exception: it is wrapped to be told."""
    assert failures.kafka_failed(KafkaException(KafkaError(code))) is (code == KafkaError._TRANSPORT)


# Settings


def test_the_shipped_file_names_every_value_and_is_the_defaults() -> None:
    path = ROOT / "config" / "resilience.yaml"
    document = yaml.safe_load(path.read_text())
    assert document == ResilienceConfig().model_dump()
    assert ResilienceConfig.load(path, {}) == ResilienceConfig.load(None, {}) == ResilienceConfig()


def test_the_defaults_are_the_documented_ones() -> None:
    guards = ResilienceConfig().guards()
    found = {g.name: (g.policy.failures, g.policy.open_seconds, g.timeout_seconds, g.policy.retries) for g in guards}
    assert found == {
        "kafka_producer": (5, 60, 30, 3),
        "kafka_consumer": (5, 60, 60, 3),
        "database": (5, 60, 10, 3),
        "redis": (3, 30, 5, 2),
    }
    assert guards.states() == dict.fromkeys(found, "closed")
    assert ResilienceConfig().timeouts.api_request_seconds == 30


@pytest.mark.parametrize(
    ("name", "waits"),
    [("kafka_producer", [1, 2, 4]), ("kafka_consumer", [1, 2, 4]), ("database", [1, 2, 4]), ("redis", [0.5, 1])],
)
def test_the_default_retries_wait_as_documented(name: str, waits: list[float]) -> None:
    policy = getattr(ResilienceConfig().guards(), name).policy
    time = Time()
    guard = Guard(
        next(_names),
        Policy(**{field: getattr(policy, field) for field in Policy.__slots__}),
        clock=time,
        sleep=time.sleep,
    )
    with pytest.raises(ConnectionResetError):
        guard.call(raising(ConnectionResetError()))
    assert time.sleeps == waits


def _leaves(tree: dict[str, Any], path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    return [
        leaf
        for name, value in tree.items()
        for leaf in (_leaves(value, (*path, name)) if isinstance(value, dict) else [(*path, name)])
    ]


@pytest.mark.parametrize("path", _leaves(ResilienceConfig().model_dump()), ids=".".join)
def test_each_value_can_be_set_by_its_variable_and_only_that_changes(path: tuple[str, ...]) -> None:
    def at(config: ResilienceConfig) -> Any:
        value: Any = config
        for name in path:
            value = getattr(value, name)
        return value

    default = at(ResilienceConfig())
    wanted = (not default) if isinstance(default, bool) else default + 1
    config = ResilienceConfig.load(None, {"TIDEMILL_RESILIENCE__" + "__".join(path).upper(): str(wanted).lower()})
    assert at(config) == wanted
    changed = [leaf for leaf in _leaves(config.model_dump()) if _dig(config, leaf) != _dig(ResilienceConfig(), leaf)]
    assert changed == [path]


def _dig(config: ResilienceConfig, path: tuple[str, ...]) -> Any:
    value: Any = config.model_dump()
    for name in path:
        value = value[name]
    return value


def test_environment_beats_file_beats_default(tmp_path: Path) -> None:
    file = tmp_path / "resilience.yaml"
    file.write_text("breakers: {redis: {failures: 8, open_seconds: 9}}\nretries:\n")
    config = ResilienceConfig.load(
        file, {"TIDEMILL_RESILIENCE__BREAKERS__REDIS__FAILURES": "2", "TIDEMILL_RESILIENCE_FILE": "x"}
    )
    assert config.breakers.redis.model_dump() == {"failures": 2, "open_seconds": 9, "first_pause_seconds": 2}
    assert config.retries == ResilienceConfig().retries


@pytest.mark.parametrize(
    ("text", "environ", "lines"),
    [
        ("breakers: {databse: {failures: 1}}", {}, [["breakers.databse", "unknown key", "kafka_producer, kafka_"]]),
        ("retry: 1", {}, [["retry", "unknown key", "breakers, retries, timeouts, fallbacks"]]),
        ("breakers: {redis: {failures: 0}}", {}, [["breakers.redis.failures", "greater than or equal to 1", "0"]]),
        ("breakers: {redis: {failures: yes}}", {}, [["breakers.redis.failures", "integer", "True"]]),
        ("breakers: {redis: {open_seconds: 30s}}", {}, [["breakers.redis.open_seconds", "number", "'30s'"]]),
        ("breakers: {redis: {open_seconds: .inf}}", {}, [["breakers.redis.open_seconds", "finite"]]),
        ("breakers: {redis: 3}", {}, [["breakers.redis", "no section", "failures, open_seconds"]]),
        ("[1]", {}, [["list", "breakers, retries, timeouts, fallbacks"]]),
        ("a: [", {}, [["not YAML"]]),
        ("retries: {redis: {max_seconds: 0.1}}", {}, [["retries.redis", "max_seconds 0.1", "initial_seconds 0.5"]]),
        ("timeouts: {redis_seconds: 0}\nx: 1", {}, [["timeouts.redis_seconds"], ["x", "unknown key"]]),
        ("", {"BREAKERS__REDIS__FAILURES": "many"}, [["BREAKERS__REDIS__FAILURES", "integer", "'many'"]]),
        ("", {"BREAKERS__REDIS__FAILURE": "7"}, [["TIDEMILL_RESILIENCE__BREAKERS__REDIS__FAILURE:", "failures"]]),
        ("", {"BREAKERS__DATABASE": "7"}, [["TIDEMILL_RESILIENCE__BREAKERS__DATABASE:", "failures, open_seconds"]]),
        ("", {"": "7"}, [["TIDEMILL_RESILIENCE__:", "breakers, retries"]]),
        ("", {"TIMEOUTS__REDIS_SECONDS": "[1"}, [["TIDEMILL_RESILIENCE__TIMEOUTS__REDIS_SECONDS", "'[1'"]]),
        (
            "",
            {"RETRIES__REDIS__MAX_SECONDS": "0.1"},
            [["max_seconds 0.1", "set by TIDEMILL_RESILIENCE__RETRIES__REDIS__MAX_SECONDS"]],
        ),
    ],
)  # fmt: skip
def test_faults_name_the_key_or_variable_and_the_remedy(
    tmp_path: Path, text: str, environ: dict[str, str], lines: list[list[str]]
) -> None:
    file = tmp_path / "resilience.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as raised:
        ResilienceConfig.load(file, {f"TIDEMILL_RESILIENCE__{name}": value for name, value in environ.items()})
    found = str(raised.value).split("\n")
    assert len(found) == len(lines)
    for line, parts in zip(found, lines, strict=True):
        assert [part for part in parts if part not in line] == [], line


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone\.yaml: cannot be read.*TIDEMILL_RESILIENCE_FILE"):
        ResilienceConfig.load(tmp_path / "gone.yaml", {})


def test_predicates_can_be_replaced() -> None:
    guards = ResilienceConfig().guards(is_failure={"database": lambda error: isinstance(error, KeyError)})
    for _ in range(5):
        with pytest.raises(KeyError):
            guards.database.call(raising(KeyError()))
    assert guards.states()["database"] == "open"


def test_the_page_shows_the_defaults() -> None:
    """The table of docs/resilience.md is the defaults, row by row."""
    text = (ROOT / "docs" / "resilience.md").read_text()
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| ")
    ]
    numbers = {row[0]: [float(n) for cell in row[1:] for n in re.findall(r"[\d.]+", cell)] for row in rows}
    for title, guard in zip(
        ("Kafka producer", "Kafka consumer", "Postgres", "Redis"), ResilienceConfig().guards(), strict=True
    ):
        policy = guard.policy
        waits = [policy.initial_seconds * policy.factor**n for n in range(policy.retries)]
        expected = [policy.failures, policy.open_seconds, policy.retries, *waits, policy.timeout_seconds]
        assert numbers[title] == expected


def test_the_page_names_every_metric_of_guards() -> None:
    text = (ROOT / "docs" / "resilience.md").read_text()
    for name in (
        "tidemill_breaker_state{name}",
        "tidemill_breaker_transitions_total{name,state}",
        "tidemill_retries_total",
    ):
        assert name in text


@pytest.mark.parametrize(
    ("error", "fatal", "reason"),
    [
        (KafkaError(KafkaError.FENCED_INSTANCE_ID, "", True), True, "told as it happens"),
        (KafkaError(KafkaError._FATAL), True, "all later calls name it, without the mark"),
        (KafkaError(KafkaError._TRANSPORT), False, "comes back by itself"),
        (ValueError("no client's"), False, "says nothing of a client"),
    ],
)
def test_what_ends_a_kafka_client(error: object, fatal: bool, reason: str) -> None:
    assert failures.kafka_fatal(error) is fatal, reason
