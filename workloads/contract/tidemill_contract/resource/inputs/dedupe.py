"""The member `source.dedupe`, with which repeated events are counted only once."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import Field

from tidemill_contract.calendars import DAY_MS
from tidemill_contract.duration import Duration, parse_ms
from tidemill_contract.functions.base import Name
from tidemill_contract.resource.faults import Fault
from tidemill_contract.resource.kinds.base import Model

ID_TYPES = ("string", "integer")
"""The types that the id of an event may have."""
MIN_MS, MAX_MS = 1_000, 30 * DAY_MS
"""The minimum and the maximum of `window`."""


class DedupeSpec(Model):
    """The settings for recognizing repeated events."""

    field: Name = Field(
        description="Field of type string or integer with the event's id. An event without an id is always counted."
    )
    window: Duration = Field(
        description="Maximum difference between event times, from 1s to 30d. Within this difference, events with the"
        " same id are counted once."
    )

    @property
    def window_ms(self) -> int:
        """The window in milliseconds."""
        return parse_ms(self.window)

    def faults(self, path: str) -> Iterator[Fault]:
        """Yield a fault if the window is too short or too long."""
        if not MIN_MS <= self.window_ms <= MAX_MS:
            message = "the window must be from 1s to 30d"
            yield Fault(f"{path}.window", self.window, message, "write a time in this range, such as 1h")
