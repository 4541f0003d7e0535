"""Check that event times are not before 1970 and not too far ahead of the clock."""

from __future__ import annotations

from collections.abc import Sequence

from tidemill_contract.events.event_errors import SECONDS_FROM, SECONDS_TO, time_in_seconds, unit_hint
from tidemill_contract.events.invalid_events import InvalidEvent, Reason

MIN_TIMESTAMP_MS, MAX_TIMESTAMP_MS = -62_135_596_800_000, 253_402_300_799_999
"""The first and the last millisecond of the years 1 to 9999."""


class EventTimes:
    """Checks the event times (epoch milliseconds) of one pipeline."""

    def __init__(self, field: str | None, max_future_ms: int) -> None:
        self._field, self._max_future_ms = field, max_future_ms

    def latest(self, now_ms: int) -> int:
        """Return the latest event time that is valid at wall time `now_ms`."""
        return now_ms + self._max_future_ms

    def are_all_valid(self, values: Sequence[int], *, is_event_time: bool, now_ms: int) -> bool:
        """Return True if all times are valid, or False if each time must be checked separately."""
        low, high = min(values), max(values)
        if is_event_time:
            return low > SECONDS_TO and high <= self.latest(now_ms)
        if low < MIN_TIMESTAMP_MS or high > MAX_TIMESTAMP_MS:
            return False
        return low > SECONDS_TO or not any(SECONDS_FROM <= value <= SECONDS_TO for value in values)

    def check_record(self, record_time_ms: int, now_ms: int) -> None:
        """Raise InvalidEvent if a record's timestamp is not a valid event time."""
        if SECONDS_FROM <= record_time_ms <= SECONDS_TO:
            raise time_in_seconds(None, record_time_ms)
        self.check(record_time_ms, now_ms)

    def check(self, event_time_ms: int, now_ms: int) -> None:
        """Raise InvalidEvent if an event time is before 1970 or too far ahead of `now_ms`."""
        if event_time_ms < 0:
            detail = f"{event_time_ms} ms is before 1970; send a time from 1970 on"
            raise InvalidEvent(Reason.TOO_OLD, self._field, detail)
        if event_time_ms > self.latest(now_ms):
            ahead = event_time_ms - now_ms
            hint = unit_hint(event_time_ms) or "correct the sender's clock, or raise maxFuture"
            raise InvalidEvent(
                Reason.TOO_FAR_IN_THE_FUTURE,
                self._field,
                f"{ahead} ms ahead of the clock; maxFuture is {self._max_future_ms} ms; {hint}",
            )
