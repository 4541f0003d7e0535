"""The way every workload calls Kafka, Postgres and Redis: breaker, retries, timeout and deadline in one object."""

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


LOOK_SECONDS = 2.0
"""How long a look at a dependency whose breaker is open may take: it comes again soon."""


class DeadlineExceeded(TimeoutError):
    """The time that a request may take was over before its call was answered."""


@dataclass(frozen=True, slots=True)
class Deadline:
    """A moment by which a request is answered, whatever happens."""

    at: float
    clock: Clock = time.monotonic

    @classmethod
    def after(cls, seconds: float, clock: Clock = time.monotonic) -> Deadline:
        """The deadline that many seconds from now."""
        return cls(clock() + seconds, clock)

    def remaining(self) -> float:
        """Seconds left; never negative."""
        return max(0.0, self.at - self.clock())


@dataclass(frozen=True, slots=True)
class Policy:
    """The settings of one guard.

    Repeat n (from 1) waits `initial_seconds * factor ** (n - 1)`, at most `max_seconds`, plus up to `jitter_seconds`.
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


class Guard:
    """Guards the calls to one dependency; shared by all threads and tasks of a process.

    `call` and `acall` serve what is shaped like a call. What begins here and ends in a callback takes a ticket from
    `admit` and hands it to `settle`. A loop asks `allow`, does its work, and tells `success` or `failure`; the thread
    or task that was let through as a trial is let through until it has told.

    Somebody looks at the dependency in the background, with `look` or `alook`, or says `recovered`: so the breaker
    closes soon after an outage, and no request has to try.
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
        self.look_seconds = min(LOOK_SECONDS, policy.timeout_seconds)
        self._clock = clock
        self._breaker = Breaker(
            name,
            failures=policy.failures,
            open_seconds=policy.open_seconds,
            first_pause_seconds=policy.first_pause_seconds,
            clock=clock,
        )
        metrics.RETRIES.labels(name=name)
        self._sleep, self._async_sleep = sleep, async_sleep
        self._holder: tuple[object, int] | None = None
        """(thread or task, ticket) of a loop that makes the trial."""
        self._wait = tenacity.wait_exponential(
            multiplier=policy.initial_seconds, exp_base=policy.factor, max=policy.max_seconds
        )

    @property
    def state(self) -> BreakerState:
        """closed, open or half_open."""
        return self._breaker.state

    @property
    def retry_after_seconds(self) -> float:
        """Seconds until a call may be let through; 0 when it may be now."""
        return self._breaker.retry_after_seconds

    def call(self, fn: Callable[..., T], *args: Any, deadline: Deadline | None = None, retry: bool = True) -> T:
        """`fn(*args)`, repeated by policy.

        A thread cannot be interrupted: give `fn` its own timeout, e.g. `timeout_seconds`.

        Args:
            fn: what to call; unless `retry` is false it may be called more than once.
            args: its arguments.
            deadline: no repeat begins after it, and no wait reaches beyond it.
            retry: false for what must not be done twice.

        Raises:
            BreakerOpen: the call was not made, or not repeated.
            DeadlineExceeded: the deadline was over before the first attempt.
            Exception: what the last attempt raised.
        """
        try:
            return self._attempt(fn, args, deadline)
        except Exception as error:
            if not retry or not self._may_repeat(error):
                raise
            first = error
        result: T = self._retrying(tenacity.Retrying, deadline, self._sleep)(
            _replay(first, lambda: self._attempt(fn, args, deadline))
        )
        return result

    async def acall(
        self, fn: Callable[..., Awaitable[T]], *args: Any, deadline: Deadline | None = None, retry: bool = True
    ) -> T:
        """`await fn(*args)`, repeated by policy; an attempt is cancelled after `timeout_seconds`, or at the deadline.

        An attempt cut by the deadline or cancelled from outside does not count as a failure of the dependency.

        Raises:
            BreakerOpen: the call was not made, or not repeated.
            DeadlineExceeded: the deadline came before an answer.
            TimeoutError: the last attempt took longer than `timeout_seconds`.
            Exception: what the last attempt raised.
        """
        try:
            return await self._aattempt(fn, args, deadline)
        except Exception as error:
            if not retry or not self._may_repeat(error):
                raise
            first = error
        repeat = _areplay(first, lambda: self._aattempt(fn, args, deadline))
        result: T = await self._retrying(tenacity.AsyncRetrying, deadline, self._async_sleep)(repeat)
        return result

    def allow(self) -> bool:
        """Whether a loop may go on now. True is followed by `success` or `failure` sooner or later."""
        if self._breaker.state == CLOSED:
            return True
        me = _current()
        if self._holder == (me, self._breaker.current_ticket()) and self._breaker.state == HALF_OPEN:
            return True
        try:
            ticket = self._breaker.admit(self.timeout_seconds)
        except BreakerOpen:
            return False
        self._holder = (me, ticket)
        return True

    def success(self) -> None:
        """A loop's work was done."""
        if (ticket := self._loop_ticket()) is not None:
            self._breaker.succeeded(ticket)

    def failure(self, error: BaseException | None = None) -> None:
        """A loop's work failed; given the error, only if `is_failure` says that the dependency is to blame."""
        if (ticket := self._loop_ticket()) is None:
            return
        if error is None:
            self._breaker.failed(ticket)
        else:
            self._judge(ticket, error)

    def look(self, fn: Callable[..., T], *args: Any) -> T:
        """`fn(*args)`, which asks the dependency for a sign of life: a call, but made while the breaker is open, too.

        An answer closes it; a failure changes nothing. Give `fn` its own timeout: `look_seconds`.
        """
        if self._breaker.state == CLOSED:
            return self.call(fn, *args, retry=False)
        began = self._clock()
        result = fn(*args)
        self._breaker.recovered(began)
        return result

    async def alook(self, fn: Callable[..., Awaitable[T]], *args: Any) -> T:
        """`await fn(*args)`, likewise; if the breaker is open, cancelled after `look_seconds`.

        Raises:
            TimeoutError: no answer in time.
            Exception: what `fn` raised.
        """
        if self._breaker.state == CLOSED:
            return await self.acall(fn, *args, retry=False)
        began = self._clock()
        async with asyncio.timeout(self.look_seconds):
            result = await fn(*args)
        self._breaker.recovered(began)
        return result

    def recovered(self, asked_at: float) -> None:
        """The dependency has answered what it was asked then (`time.monotonic()`), beside the calls of this guard."""
        self._breaker.recovered(asked_at)

    def admit(self) -> int:
        """A ticket for work whose end is told by `settle`, from any thread; a trial is lost after `timeout_seconds`.

        Raises:
            BreakerOpen: the work must not begin.
        """
        return self._breaker.admit(self.timeout_seconds)

    def settle(self, ticket: int, error: BaseException | None = None) -> None:
        """The work of this ticket is done, or ended with an error, which counts if `is_failure` says so."""
        if error is None:
            self._breaker.succeeded(ticket)
        else:
            self._judge(ticket, error)

    def _loop_ticket(self) -> int | None:
        if self._breaker.state != HALF_OPEN:
            return self._breaker.current_ticket()
        holder = self._holder
        return holder[1] if holder is not None and holder[0] == _current() else None

    def _attempt(self, fn: Callable[..., T], args: tuple[Any, ...], deadline: Deadline | None) -> T:
        if deadline is not None and deadline.remaining() <= 0:
            raise DeadlineExceeded(f"{self.name}: no time was left to call it")
        ticket = self._breaker.admit()
        try:
            result = fn(*args)
        except BaseException as error:
            self._judge(ticket, error)
            raise
        self._breaker.succeeded(ticket)
        return result

    async def _aattempt(self, fn: Callable[..., Awaitable[T]], args: tuple[Any, ...], deadline: Deadline | None) -> T:
        limit = self.timeout_seconds
        left = deadline.remaining() if deadline is not None else limit
        if left <= 0:
            raise DeadlineExceeded(f"{self.name}: no time was left to call it")
        ticket = self._breaker.admit()
        timer = asyncio.timeout(min(limit, left))
        try:
            async with timer:
                result = await fn(*args)
        except BaseException as error:
            if left < limit and timer.expired() and isinstance(error, TimeoutError):
                self._breaker.abandoned(ticket)
                raise DeadlineExceeded(
                    f"{self.name}: no answer within the {left:.3g} s that the request had left"
                ) from error
            self._judge(ticket, error)
            raise
        self._breaker.succeeded(ticket)
        return result

    def _judge(self, ticket: int, error: BaseException) -> None:
        # Cancellation and interpreter exits are no Exception: they tell nothing about the dependency.
        if isinstance(error, Exception) and self.policy.is_failure(error):
            self._breaker.failed(ticket)
        else:
            self._breaker.abandoned(ticket)

    def _may_repeat(self, error: BaseException) -> bool:
        return (
            self.policy.retries > 0
            and not isinstance(error, (BreakerOpen, DeadlineExceeded))
            and isinstance(error, Exception)
            and self.policy.is_retryable(error)
            and self._breaker.state != OPEN
        )

    def _retrying(self, kind: Callable[..., Any], deadline: Deadline | None, sleep: Any) -> Any:
        def over(state: tenacity.RetryCallState) -> bool:
            spent = state.attempt_number > self.policy.retries or self._breaker.state == OPEN
            if not spent and (deadline is None or state.upcoming_sleep < deadline.remaining()):
                metrics.RETRIES.labels(name=self.name).inc()
                return False
            return True

        wait = (
            self._wait
            if not self.policy.jitter_seconds
            else self._wait + tenacity.wait_random(0, self.policy.jitter_seconds)
        )
        return kind(
            stop=over, wait=wait, retry=tenacity.retry_if_exception(self._may_repeat), sleep=sleep, reraise=True
        )


def _current() -> object:
    """The task that runs, or the thread where there is no event loop."""
    try:
        return asyncio.current_task() or threading.get_ident()
    except RuntimeError:
        return threading.get_ident()


def _raise(error: Exception) -> NoReturn:
    raise error


def _replay(first: Exception, attempt: Callable[[], T]) -> Callable[[], T]:
    """The first attempt was made without tenacity, which costs more than a call; tenacity hears of it here."""
    pending = [first]
    return lambda: _raise(pending.pop()) if pending else attempt()


def _areplay(first: Exception, attempt: Callable[[], Awaitable[T]]) -> Callable[[], Awaitable[T]]:
    pending = [first]

    async def replay() -> T:
        if pending:
            raise pending.pop()
        return await attempt()

    return replay


@dataclass(frozen=True)
class Guards:
    """The guards of a process."""

    kafka_producer: Guard
    kafka_consumer: Guard
    database: Guard
    redis: Guard

    def __iter__(self) -> Iterator[Guard]:
        return (getattr(self, field.name) for field in fields(self))

    def states(self) -> dict[str, BreakerState]:
        """The state of each breaker by its guard's name."""
        return {guard.name: guard.state for guard in self}
