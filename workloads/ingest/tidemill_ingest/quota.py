"""Limits each pipeline's events per second, bytes per second and unacknowledged bytes in this process."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tidemill_chassis.web.problems import Problem

EVENTS_PER_SECOND = 250_000
BYTES_PER_SECOND = 64 * 1024 * 1024
IN_FLIGHT_BYTES = 128 * 1024 * 1024
EVENTS_VARIABLE = "TIDEMILL_INGEST_EVENTS_PER_SECOND"
BYTES_VARIABLE = "TIDEMILL_INGEST_BYTES_PER_SECOND"
IN_FLIGHT_VARIABLE = "TIDEMILL_INGEST_IN_FLIGHT_BYTES"


@dataclass(frozen=True)
class Limits:
    """Limits that a process applies to each pipeline separately. The value 0 means no limit."""

    events_per_second: float = EVENTS_PER_SECOND
    bytes_per_second: float = BYTES_PER_SECOND
    in_flight_bytes: int = IN_FLIGHT_BYTES

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> Limits:
        """Read the limits from the environment.

        Raises:
            ValueError: a limit is not a number of at least 0.
        """
        return cls(
            _number(environ, EVENTS_VARIABLE, cls.events_per_second, "events a second"),
            _number(environ, BYTES_VARIABLE, cls.bytes_per_second, "bytes a second"),
            int(_number(environ, IN_FLIGHT_VARIABLE, cls.in_flight_bytes, "bytes")),
        )


def _number(environ: Mapping[str, str], variable: str, default: float, unit: str) -> float:
    text = environ.get(variable, "")
    try:
        number = float(text) if text else default
    except ValueError:
        number = math.nan
    if not (0 <= number < math.inf):
        raise ValueError(f"{variable}: {text!r} is not a number of {unit}; write e.g. 5000, or 0 for no limit")
    return number


class _TokenBuckets:
    """A token bucket for each pipeline, which holds at most the tokens of one second."""

    def __init__(self, unit: str, rate: float) -> None:
        self.unit, self.rate = unit, rate
        self.policy = f'"{unit}";q={math.ceil(rate)};w=1'
        self._buckets: dict[str, tuple[float, float]] = {}
        """The remaining tokens and the time when they were counted, by pipeline."""

    def refill(self, pipeline: str, now: float) -> float:
        left, counted_at = self._buckets.get(pipeline, (self.rate, now))
        left = min(self.rate, left + (now - counted_at) * self.rate)
        self._buckets[pipeline] = left, now
        return left

    def take(self, pipeline: str, count: float) -> float:
        """Remove `count` tokens from the bucket, and return the number of remaining tokens.

        Call `refill` first to add the new tokens.
        """
        left, counted_at = self._buckets[pipeline]
        self._buckets[pipeline] = left - count, counted_at
        return left - count

    def header(self, left: float) -> str:
        reset = math.ceil(max(0.0, self.rate - left) / self.rate)
        return f'"{self.unit}";r={max(0, math.floor(left))};t={reset}'


class Quota:
    """Limits the events and bytes per second of each pipeline."""

    def __init__(self, limits: Limits, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        rates = {"events": limits.events_per_second, "bytes": limits.bytes_per_second}
        self._limits = [_TokenBuckets(unit, rate) for unit, rate in rates.items() if rate]
        self._policy = ", ".join(limit.policy for limit in self._limits)

    def take(self, pipeline: str, events: int, size: int) -> dict[str, str]:
        """Take the tokens of a request from the quotas, and return the RateLimit headers of the answer.

        Args:
            pipeline: the pipeline of the events.
            events: the number of events.
            size: the size of all events, in bytes.

        Raises:
            Problem: a quota is used up (429).
        """
        if not self._limits:
            return {}
        now = self._clock()
        left = [limit.refill(pipeline, now) for limit in self._limits]
        for limit, remaining in zip(self._limits, left, strict=True):
            if remaining <= 0:
                headers = {**self._headers(left), "retry-after": str(max(1, math.ceil(-remaining / limit.rate)))}
                detail = f"{pipeline} takes {limit.rate:.0f} {limit.unit} a second; send again later"
                raise Problem(429, "quota_exceeded", detail, headers=headers, limit=f"{limit.unit}_per_second")
        return self._headers(
            [limit.take(pipeline, size if limit.unit == "bytes" else events) for limit in self._limits]
        )

    def _headers(self, left: list[float]) -> dict[str, str]:
        ratelimit = ", ".join(limit.header(remaining) for limit, remaining in zip(self._limits, left, strict=True))
        return {"ratelimit-policy": self._policy, "ratelimit": ratelimit}
