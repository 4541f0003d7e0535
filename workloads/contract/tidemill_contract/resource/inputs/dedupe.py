"""The member `source.dedupe`, with which repeated events are counted only once."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import Field

from tidemill_contract.calendars import DAY_MS
from tidemill_contract.duration import Duration, parse_ms
from tidemill_contract.functions.base import Name
from tidemill_contract.resource.faults import Fault
from tidemill_contract.resource.kinds.base import Model

TYPES = ("string", "integer")
"""The allowed types of the field with the id of an event."""
LEAST_MS, MOST_MS = 1_000, 30 * DAY_MS
"""The minimum and the maximum of `window`."""


class DedupeSpec(Model):
    """The settings for recognizing repeated events."""

    field: Name = Field(
        description="Field with the id of an event, of type string or integer. An event without an id always counts."
    )
    window: Duration = Field(
        description="Events with the same id count once if their event times differ by at most this duration."
        " 1s to 30d."
    )

    @property
    def window_ms(self) -> int:
        """The window in milliseconds."""
        return parse_ms(self.window)

    def faults(self, path: str) -> Iterator[Fault]:
        """Yield a fault if the window is too short or too long."""
        if not LEAST_MS <= self.window_ms <= MOST_MS:
            message = "the window must be from 1s to 30d"
            yield Fault(f"{path}.window", self.window, message, "write a time in this range, such as 1h")
