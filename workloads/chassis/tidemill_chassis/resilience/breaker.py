"""One circuit breaker, by pybreaker, driven from threads and from asyncio alike.

pybreaker's own `call` holds its lock while the guarded function runs, knows no asyncio, and measures with the wall
clock. So pybreaker keeps the state and the counters, and is told outcomes after the fact; admission is decided here.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from typing import Any, Literal

import pybreaker

from tidemill_chassis import metrics

log = logging.getLogger(__name__)

BreakerState = Literal["closed", "half_open", "open"]
CLOSED: BreakerState = "closed"
HALF_OPEN: BreakerState = "half_open"
OPEN: BreakerState = "open"
_STATES: dict[str, BreakerState] = {"closed": CLOSED, "half-open": HALF_OPEN, "open": OPEN}
_GAUGE: dict[BreakerState, int] = {CLOSED: 0, HALF_OPEN: 1, OPEN: 2}
_STEPS = (1.0, 2.5, 5.0)
_MAX_STEP = 60


class BreakerOpen(Exception):
    """A call was not made, because its dependency failed repeatedly a short while ago.

    Attributes:
        name: the guard's name.
        retry_after_seconds: when the next call may be let through.
    """

    def __init__(self, name: str, retry_after_seconds: float) -> None:
        super().__init__(
            f"{name}: circuit breaker open; the next attempt is let through in {retry_after_seconds:.0f} s"
        )
        self.name, self.retry_after_seconds = name, retry_after_seconds


class _Failure(Exception):
    """Stands for any failure when pybreaker is told; the caller's own exception keeps its traceback clean."""


def _fail() -> None:
    raise _Failure


def _succeed() -> None:
    return None


class Breaker:
    """Closed → open after consecutive failures → half open after a pause, with one trial at a time → closed or open.

    A call asks `admit` for a ticket and hands it back with its outcome. The outcome of a call that began before the
    latest change of state says nothing about now, and is ignored.

    The pauses of one outage grow about twofold each, as 2, 5, 10, 20, 50, … do; none is longer than `open_seconds`.
    Without a first one each is `open_seconds`.
    """

    def __init__(
        self,
        name: str,
        *,
        failures: int,
        open_seconds: float,
        first_pause_seconds: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self._open_seconds = open_seconds
        self._first_pause = open_seconds if first_pause_seconds is None else first_pause_seconds
        self._openings = 0
        """Since the breaker was closed last."""
        self._pause = open_seconds
        self._clock = clock
        self._lock = threading.RLock()
        self._state: BreakerState = CLOSED
        self._ticket = 0
        self._opened_at = 0.0
        self._trial_ends: float | None = None
        """When the trial under way may be given up as lost; None: there is no trial. Infinite for calls."""
        self._circuit = pybreaker.CircuitBreaker(
            fail_max=failures,
            reset_timeout=open_seconds,
            name=name,
            throw_new_error_on_trip=False,
            listeners=[_Listener(self)],
        )
        metrics.BREAKER_STATE.labels(name=name).set(_GAUGE[CLOSED])
        for state in _GAUGE:
            metrics.BREAKER_TRANSITIONS.labels(name=name, state=state)

    @property
    def state(self) -> BreakerState:
        """The state now; `open` lasts until somebody's call makes it half open."""
        return self._state

    @property
    def retry_after_seconds(self) -> float:
        """Seconds until a call may be let through; 0 when it may be now."""
        with self._lock:
            if self._state == OPEN:
                return max(0.0, self._opened_at + self._pause - self._clock())
            if self._state == HALF_OPEN and self._trial_ends is not None and self._clock() < self._trial_ends:
                return min(1.0, self._pause)
            return 0.0

    def admit(self, trial_seconds: float = float("inf")) -> int:
        """A ticket for one call.

        Args:
            trial_seconds: should this be the trial of a half-open breaker, how long others wait for its outcome.

        Raises:
            BreakerOpen: the call must not be made.
        """
        if self._state == CLOSED:
            return self._ticket
        with self._lock:
            if self._state == CLOSED:
                return self._ticket
            wait = self.retry_after_seconds
            if wait > 0:
                raise BreakerOpen(self.name, wait)
            if self._state == OPEN:
                self._circuit.half_open()
            self._ticket += 1
            self._trial_ends = self._clock() + trial_seconds
            return self._ticket

    def succeeded(self, ticket: int) -> None:
        """The call of this ticket was answered."""
        if self._state == CLOSED and not self._circuit.fail_counter:
            return
        self._tell(ticket, _succeed)

    def failed(self, ticket: int) -> None:
        """The call of this ticket failed as calls to a broken dependency do."""
        self._tell(ticket, _fail)

    def recovered(self, asked_at: float) -> None:
        """The dependency answered a question that was put then, beside the calls: whatever the pause, it is over.

        Args:
            asked_at: by the breaker's clock. An answer to what was asked before the breaker opened says nothing.
        """
        if self._state == CLOSED:
            return
        with self._lock:
            if self._state == CLOSED or asked_at < self._opened_at:
                return
            if self._state == OPEN:
                self._circuit.half_open()
            self._circuit.call(_succeed)

    def abandoned(self, ticket: int) -> None:
        """The call of this ticket ended in a way that tells nothing; another trial may be made."""
        with self._lock:
            if ticket == self._ticket:
                self._trial_ends = None

    def current_ticket(self) -> int:
        """The ticket of calls made now by a caller who was not asked to take one."""
        return self._ticket

    def _tell(self, ticket: int, outcome: Callable[[], None]) -> None:
        with self._lock:
            if ticket != self._ticket or self._state == OPEN:
                return
            self._trial_ends = None
            with contextlib.suppress(_Failure):
                self._circuit.call(outcome)

    def changed(self, state: BreakerState) -> None:
        """Take over the state that pybreaker has just changed to, under our lock."""
        before, self._state = self._state, state
        self._ticket += 1
        self._trial_ends = None
        if state == OPEN:
            self._openings += 1
            self._opened_at, self._pause = self._clock(), self._pause_after(self._openings)
        elif state == CLOSED:
            self._openings = 0
        # A trial that follows one that failed is no news: who watches sees one outage, not many.
        shown = OPEN if state == HALF_OPEN and self._openings > 1 else state
        metrics.BREAKER_STATE.labels(name=self.name).set(_GAUGE[shown])
        metrics.BREAKER_TRANSITIONS.labels(name=self.name, state=state).inc()
        # Likewise: one warning an outage.
        level = logging.WARNING if state == OPEN and self._openings == 1 else logging.INFO
        log.log(level, "circuit breaker %s: %s, was %s", self.name, state, before)

    def _pause_after(self, openings: int) -> float:
        tens, step = divmod(min(openings - 1, _MAX_STEP), len(_STEPS))
        return min(self._open_seconds, self._first_pause * _STEPS[step] * 10.0**tens)


class _Listener(pybreaker.CircuitBreakerListener):
    def __init__(self, breaker: Breaker) -> None:
        self._breaker = breaker

    def state_change(self, cb: Any, old_state: Any, new_state: Any) -> None:
        """Called by pybreaker."""
        self._breaker.changed(_STATES[new_state.name])
