"""A circuit breaker for threads and asyncio, based on pybreaker, which keeps the state and the counters."""

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
_GAUGE_VALUES: dict[BreakerState, int] = {CLOSED: 0, HALF_OPEN: 1, OPEN: 2}
_PAUSE_STEPS = (1.0, 2.5, 5.0)
_MAX_STEP = 60


class BreakerOpen(Exception):
    """The error for a refused call. The dependency has failed several times in a row."""

    def __init__(self, name: str, retry_after_seconds: float) -> None:
        super().__init__(f"{name}: circuit breaker open; the next attempt is allowed in {retry_after_seconds:.0f} s")
        self.name, self.retry_after_seconds = name, retry_after_seconds


class _Failure(Exception):
    """`_fail` raises this exception, so that pybreaker counts a failure."""


def _fail() -> None:
    raise _Failure


def _succeed() -> None:
    return None


class Breaker:
    """A circuit breaker.

    A closed breaker opens after several failures in a row. After a pause, an open breaker becomes half open, and allows
    one trial call at a time. A successful trial closes the breaker, and a failed trial opens the breaker again.

    Each pause during an outage is about twice as long as the previous pause, up to `open_seconds`.
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
        """How often the breaker has opened since the last closed state. Failed trial calls count too."""
        self._pause = open_seconds
        self._clock = clock
        self._lock = threading.RLock()
        self._state: BreakerState = CLOSED
        self._ticket = 0
        self._opened_at = 0.0
        self._trial_end: float | None = None
        """The time at which the running trial call expires, or None without a trial call."""
        self._circuit = pybreaker.CircuitBreaker(
            fail_max=failures,
            reset_timeout=open_seconds,
            name=name,
            throw_new_error_on_trip=False,
            listeners=[_Listener(self)],
        )
        metrics.BREAKER_STATE.labels(name=name).set(_GAUGE_VALUES[CLOSED])
        for state in _GAUGE_VALUES:
            metrics.BREAKER_TRANSITIONS.labels(name=name, state=state)

    @property
    def state(self) -> BreakerState:
        """The current state. After the pause, the next call changes an open breaker to half-open."""
        return self._state

    @property
    def retry_after_seconds(self) -> float:
        """The seconds until the next call is allowed, or 0 if a call is allowed now."""
        with self._lock:
            if self._state == OPEN:
                return max(0.0, self._opened_at + self._pause - self._clock())
            if self._state == HALF_OPEN and self._trial_end is not None and self._clock() < self._trial_end:
                return min(1.0, self._pause)
            return 0.0

    def admit(self, trial_seconds: float = float("inf")) -> int:
        """Allow one call, and return a ticket (a number) with which the caller reports the outcome.

        Raises:
            BreakerOpen: the breaker is open.
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
            self._trial_end = self._clock() + trial_seconds
            return self._ticket

    def record_success(self, ticket: int) -> None:
        """Report that the call with this ticket got an answer."""
        if self._state == CLOSED and not self._circuit.fail_counter:
            return
        self._report(ticket, _succeed)

    def record_failure(self, ticket: int) -> None:
        """Report that the call with this ticket failed because of the dependency."""
        self._report(ticket, _fail)

    def record_recovery(self, probe_began: float) -> None:
        """Close the breaker after a successful probe of the dependency."""
        if self._state == CLOSED:
            return
        with self._lock:
            if self._state == CLOSED or probe_began < self._opened_at:
                return
            if self._state == OPEN:
                self._circuit.half_open()
            self._circuit.call(_succeed)

    def abandon(self, ticket: int) -> None:
        """Report that the call with this ticket ended without a result, for example by a cancellation."""
        with self._lock:
            if ticket == self._ticket:
                self._trial_end = None

    def current_ticket(self) -> int:
        """Return the current ticket number. The breaker ignores the results of calls with earlier tickets."""
        return self._ticket

    def _report(self, ticket: int, outcome: Callable[[], None]) -> None:
        with self._lock:
            if ticket != self._ticket or self._state == OPEN:
                return
            self._trial_end = None
            with contextlib.suppress(_Failure):
                self._circuit.call(outcome)

    def on_state_change(self, state: BreakerState) -> None:
        """Record the new state that pybreaker reports. Callers must hold the breaker's lock."""
        previous, self._state = self._state, state
        self._ticket += 1
        self._trial_end = None
        if state == OPEN:
            self._openings += 1
            self._opened_at, self._pause = self._clock(), self._pause_after(self._openings)
        elif state == CLOSED:
            self._openings = 0
        # After a failed trial call, report half-open as open, so that graphs show one outage.
        gauge_state = OPEN if state == HALF_OPEN and self._openings > 1 else state
        metrics.BREAKER_STATE.labels(name=self.name).set(_GAUGE_VALUES[gauge_state])
        metrics.BREAKER_TRANSITIONS.labels(name=self.name, state=state).inc()
        # Log only one warning for each outage.
        level = logging.WARNING if state == OPEN and self._openings == 1 else logging.INFO
        log.log(level, "circuit breaker %s: %s, was %s", self.name, state, previous)

    def _pause_after(self, openings: int) -> float:
        tens, step = divmod(min(openings - 1, _MAX_STEP), len(_PAUSE_STEPS))
        return min(self._open_seconds, self._first_pause * _PAUSE_STEPS[step] * 10.0**tens)


class _Listener(pybreaker.CircuitBreakerListener):
    def __init__(self, breaker: Breaker) -> None:
        self._breaker = breaker

    def state_change(self, cb: Any, old_state: Any, new_state: Any) -> None:
        self._breaker.on_state_change(_STATES[new_state.name])
