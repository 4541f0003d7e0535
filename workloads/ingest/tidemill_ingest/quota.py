"""How many events a second a pipeline may send through this process."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping

from tidemill_ingest.problems import Refused

VARIABLE = "TIDEMILL_INGEST_EVENTS_PER_SECOND"


class Quota:
    """A token bucket for each pipeline that holds one second's worth.

    A request passes if anything is left, however many events it has, and the next ones wait until its debt is paid: so
    batches may be larger than the rate, and the rate is kept.

    Args:
        events_per_second: the rate; 0: no quota.
        clock: seconds that only grow.
    """

    def __init__(self, events_per_second: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._clock = events_per_second, clock
        self._buckets: dict[str, tuple[float, float]] = {}
        """(events left, when) by pipeline."""

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> Quota:
        """The quota that the environment sets.

        Raises:
            ValueError: it is not a number of events, 0 or more.
        """
        text = environ.get(VARIABLE, "") or "0"
        try:
            rate = float(text)
        except ValueError:
            rate = math.nan
        if not (0 <= rate < math.inf):
            raise ValueError(f"{VARIABLE}: {text!r} is not a number of events a second; write e.g. 5000, or 0 for none")
        return cls(rate)

    def take(self, pipeline: str, events: int) -> dict[str, str]:
        """Count events that are about to be sent.

        Returns:
            The RateLimit headers of the answer; none without a quota.

        Raises:
            Refused: 429, the quota is used up.
        """
        if not self._rate:
            return {}
        now = self._clock()
        left, at = self._buckets.get(pipeline, (self._rate, now))
        left = min(self._rate, left + (now - at) * self._rate)
        if left <= 0:
            wait = -left / self._rate
            headers = {**self._headers(left), "retry-after": str(max(1, math.ceil(wait)))}
            detail = f"{pipeline} takes {self._rate:g} events a second; send again later"
            self._buckets[pipeline] = left, now
            raise Refused(429, "quota_exceeded", detail, headers=headers)
        self._buckets[pipeline] = left - events, now
        return self._headers(left - events)

    def _headers(self, left: float) -> dict[str, str]:
        reset = math.ceil(max(0.0, self._rate - left) / self._rate)
        return {
            "ratelimit-policy": f'"events";q={math.ceil(self._rate)};w=1',
            "ratelimit": f'"events";r={max(0, math.floor(left))};t={reset}',
        }
