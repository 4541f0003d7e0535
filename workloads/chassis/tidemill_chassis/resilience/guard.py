"""Guards, through which all workloads call Kafka, Postgres and Redis."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, fields
from typing import Any, NoReturn, TypeVar

import tenacity

from tidemill_chassis import metrics
from tidemill_chassis.resilience.breaker import CLOSED, HALF_OPEN, OPEN, Breaker, BreakerOpen, BreakerState
from tidemill_chassis.resilience.failures import Predicate

T = TypeVar("T")
Clock = Callable[[], float]


PROBE_TIMEOUT_SECONDS = 2.0
"""Timeout of a probe while the breaker is open."""


class DeadlineExceeded(TimeoutError):
    """Raised if the deadline of a request passes before a call is answered."""


@dataclass(frozen=True, slots=True)
class Deadline:
    """The time by which a request must be answered."""

    at: float
    clock: Clock = time.monotonic

    @classmethod
    def after(cls, seconds: float, clock: Clock = time.monotonic) -> Deadline:
        """Return the deadline that is `seconds` from now."""
        return cls(clock() + seconds, clock)

    def remaining(self) -> float:
        """Return the remaining seconds, at least 0."""
        return max(0.0, self.at - self.clock())


@dataclass(frozen=True, slots=True)
class Policy:
    """The settings of one guard.

    Before retry n (from 1), the guard waits `initial_seconds * factor ** (n - 1)`, but at most `max_seconds`. The
    guard adds up to `jitter_seconds`.
    """

    failures: int
    open_seconds: float
    timeout_seconds: float
    retries: int
    initial_seconds: float
    factor: float
    max_seconds: float
    jitter_seconds: float
    is_failure: Predicate
    is_retryable: Predicate
    first_pause_seconds: float | None = None

    def breaker(self, name: str, clock: Clock) -> Breaker:
        """Return a closed breaker."""
        return Breaker(
            name,
            failures=self.failures,
            open_seconds=self.open_seconds,
            first_pause_seconds=self.first_pause_seconds,
            clock=clock,
        )

    def wait(self) -> tenacity.wait.wait_base:
        """Return tenacity's wait strategy for the retries."""
        wait = tenacity.wait_exponential(multiplier=self.initial_seconds, exp_base=self.factor, max=self.max_seconds)
        return wait + tenacity.wait_random(0, self.jitter_seconds) if self.jitter_seconds else wait


class Guard:
    """A circuit breaker and retries for the calls to one dependency. Threads and tasks can share a guard.

    - `call` and `acall` call a function, and retry a failed call.
    - `admit` returns a ticket for a call whose result arrives later. `record_result` takes the ticket and the result.
    - `allow` returns whether a loop may call the dependency. The loop then calls `record_success` or `record_failure`.
    - `probe` and `aprobe` probe the dependency. A successful probe closes the breaker after an outage.
    """

    def __init__(
        self,
        name: str,
        policy: Policy,
        *,
        clock: Clock = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        async_sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.name = name
        self.policy = policy
        self.timeout_seconds = policy.timeout_seconds
        self.probe_timeout_seconds = min(PROBE_TIMEOUT_SECONDS, policy.timeout_seconds)
        self._clock = clock
        self._breaker = policy.breaker(name, clock)
        metrics.RETRIES.labels(name=name)
        self._sleep, self._async_sleep = sleep, async_sleep
        self._trial_holder: tuple[object, int] | None = None
        """After `allow`: the thread or task that may make a trial call, and the call's ticket."""
        self._wait = policy.wait()

    @property
    def state(self) -> BreakerState:
        """The state of the breaker: closed, open or half_open."""
        return self._breaker.state

    @property
    def retry_after_seconds(self) -> float:
        """The seconds until the next call is allowed, or 0 if a call is allowed now."""
        return self._breaker.retry_after_seconds

    def call(self, fn: Callable[..., T], *args: Any, deadline: Deadline | None = None, retry: bool = True) -> T:
        """Return `fn(*args)`, with retries according to the policy.

        Args:
            fn: the function, which must have its own timeout.
            args: the arguments of the function.
            deadline: the time after which no retry starts.
            retry: whether the call may be repeated.

        Raises:
            BreakerOpen: the breaker refused the first attempt or a retry.
            DeadlineExceeded: the deadline passed before the first attempt.
        """
        try:
            return self._attempt(fn, args, deadline)
        except Exception as error:
            if not retry or not self._may_repeat(error):
                raise
            first_error = error
        result: T = self._retrying(tenacity.Retrying, deadline, self._sleep)(
            _with_first_error(first_error, lambda: self._attempt(fn, args, deadline))
        )
        return result

    async def acall(
        self, fn: Callable[..., Awaitable[T]], *args: Any, deadline: Deadline | None = None, retry: bool = True
    ) -> T:
        """Return `await fn(*args)`, with retries according to the policy.

        Each attempt is cancelled after `timeout_seconds`, or at the deadline.

        Raises:
            BreakerOpen: the breaker refused the first attempt or a retry.
            DeadlineExceeded: the deadline passed before an answer came.
            TimeoutError: the last attempt took longer than `timeout_seconds`.
        """
        try:
            return await self._aattempt(fn, args, deadline)
        except Exception as error:
            if not retry or not self._may_repeat(error):
                raise
            first_error = error
        retry_attempt = _with_first_error_async(first_error, lambda: self._aattempt(fn, args, deadline))
        result: T = await self._retrying(tenacity.AsyncRetrying, deadline, self._async_sleep)(retry_attempt)
        return result

    def allow(self) -> bool:
        """Return whether a loop may call the dependency now. After the call, the loop must report the result."""
        if self._breaker.state == CLOSED:
            return True
        caller = _current_caller()
        if self._trial_holder == (caller, self._breaker.current_ticket()) and self._breaker.state == HALF_OPEN:
            return True
        try:
            ticket = self._breaker.admit(self.timeout_seconds)
        except BreakerOpen:
            return False
        self._trial_holder = (caller, ticket)
        return True

    def record_success(self) -> None:
        """Report the success of the call after `allow`."""
        if (ticket := self._loop_ticket()) is not None:
            self._breaker.record_success(ticket)

    def record_failure(self, error: BaseException | None = None) -> None:
        """Report the failure of the call after `allow`."""
        if (ticket := self._loop_ticket()) is None:
            return
        if error is None:
            self._breaker.record_failure(ticket)
        else:
            self._record_error(ticket, error)

    def probe(self, fn: Callable[..., T], *args: Any) -> T:
        """Probe the dependency with `fn(*args)`, even while the breaker is open, and return the result.

        `fn` must have its own timeout, such as `probe_timeout_seconds`.

        Raises:
            Exception: the error of `fn`.
        """
        if self._breaker.state == CLOSED:
            return self.call(fn, *args, retry=False)
        began = self._clock()
        result = fn(*args)
        self._breaker.record_recovery(began)
        return result

    async def aprobe(self, fn: Callable[..., Awaitable[T]], *args: Any) -> T:
        """Probe the dependency with `await fn(*args)`, even while the breaker is open, and return the result.

        Raises:
            TimeoutError: no answer came in time.
        """
        if self._breaker.state == CLOSED:
            return await self.acall(fn, *args, retry=False)
        began = self._clock()
        async with asyncio.timeout(self.probe_timeout_seconds):
            result = await fn(*args)
        self._breaker.record_recovery(began)
        return result

    def record_recovery(self, probe_began: float) -> None:
        """Close the breaker after a successful probe. The probe began at `probe_began` (`time.monotonic()`)."""
        self._breaker.record_recovery(probe_began)

    def admit(self) -> int:
        """Allow one call, and return a ticket with which any thread can call `record_result`.

        Raises:
            BreakerOpen: the breaker is open.
        """
        return self._breaker.admit(self.timeout_seconds)

    def record_result(self, ticket: int, error: BaseException | None = None) -> None:
        """Report that the call with this ticket succeeded, or failed with `error`."""
        if error is None:
            self._breaker.record_success(ticket)
        else:
            self._record_error(ticket, error)

    def _loop_ticket(self) -> int | None:
        if self._breaker.state != HALF_OPEN:
            return self._breaker.current_ticket()
        holder = self._trial_holder
        return holder[1] if holder is not None and holder[0] == _current_caller() else None

    def _attempt(self, fn: Callable[..., T], args: tuple[Any, ...], deadline: Deadline | None) -> T:
        if deadline is not None and deadline.remaining() <= 0:
            raise DeadlineExceeded(f"{self.name}: the request's deadline passed before the call")
        ticket = self._breaker.admit()
        try:
            result = fn(*args)
        except BaseException as error:
            self._record_error(ticket, error)
            raise
        self._breaker.record_success(ticket)
        return result

    async def _aattempt(self, fn: Callable[..., Awaitable[T]], args: tuple[Any, ...], deadline: Deadline | None) -> T:
        limit = self.timeout_seconds
        remaining = deadline.remaining() if deadline is not None else limit
        if remaining <= 0:
            raise DeadlineExceeded(f"{self.name}: the request's deadline passed before the call")
        ticket = self._breaker.admit()
        timer = asyncio.timeout(min(limit, remaining))
        try:
            async with timer:
                result = await fn(*args)
        except BaseException as error:
            if remaining < limit and timer.expired() and isinstance(error, TimeoutError):
                self._breaker.abandon(ticket)
                raise DeadlineExceeded(
                    f"{self.name}: no answer within the remaining {remaining:.3g} s of the request"
                ) from error
            self._record_error(ticket, error)
            raise
        self._breaker.record_success(ticket)
        return result

    def _record_error(self, ticket: int, error: BaseException) -> None:
        # Cancellation and SystemExit say nothing about the dependency.
        if isinstance(error, Exception) and self.policy.is_failure(error):
            self._breaker.record_failure(ticket)
        else:
            self._breaker.abandon(ticket)

    def _may_repeat(self, error: BaseException) -> bool:
        return (
            self.policy.retries > 0
            and not isinstance(error, (BreakerOpen, DeadlineExceeded))
            and isinstance(error, Exception)
            and self.policy.is_retryable(error)
            and self._breaker.state != OPEN
        )

    def _retrying(self, kind: Callable[..., Any], deadline: Deadline | None, sleep: Any) -> Any:
        def stop(state: tenacity.RetryCallState) -> bool:
            no_retries_left = state.attempt_number > self.policy.retries or self._breaker.state == OPEN
            if not no_retries_left and (deadline is None or state.upcoming_sleep < deadline.remaining()):
                metrics.RETRIES.labels(name=self.name).inc()
                return False
            return True

        return kind(
            stop=stop, wait=self._wait, retry=tenacity.retry_if_exception(self._may_repeat), sleep=sleep, reraise=True
        )


def _current_caller() -> object:
    try:
        return asyncio.current_task() or threading.get_ident()
    except RuntimeError:
        return threading.get_ident()


def _raise(error: Exception) -> NoReturn:
    raise error


def _with_first_error(first_error: Exception, attempt: Callable[[], T]) -> Callable[[], T]:
    pending = [first_error]
    return lambda: _raise(pending.pop()) if pending else attempt()


def _with_first_error_async(first_error: Exception, attempt: Callable[[], Awaitable[T]]) -> Callable[[], Awaitable[T]]:
    pending = [first_error]

    async def next_attempt() -> T:
        if pending:
            raise pending.pop()
        return await attempt()

    return next_attempt


@dataclass(frozen=True)
class Guards:
    """The guards of a process, one for each dependency."""

    kafka_producer: Guard
    kafka_consumer: Guard
    database: Guard
    redis: Guard

    def __iter__(self) -> Iterator[Guard]:
        return (getattr(self, field.name) for field in fields(self))

    def states(self) -> dict[str, BreakerState]:
        """Return the states of the breakers by guard name."""
        return {guard.name: guard.state for guard in self}
