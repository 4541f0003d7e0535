"""The member `source.dedupe`: the field that identifies an event, and the time for which ids are remembered."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import Field

from tidemill_contract.duration import Duration, parse_ms
from tidemill_contract.functions.base import Name
from tidemill_contract.resource.faults import Fault
from tidemill_contract.resource.kinds.base import Model

TYPES = ("string", "integer")
"""The types of fields that can identify events."""
LEAST_MS, MOST_MS = 1_000, 30 * 86_400_000
"""The limits of a window. All ids of a window are stored in Postgres."""


class DedupeSpec(Model):
    """How repeated events are recognised."""

    field: Name = Field(
        description="Field with the id of the event, of type string or integer. Events in which it is null all count."
    )
    window: Duration = Field(
        description="Of events with equal ids whose event times are at most this far apart, one counts. 1s to 30d."
    )

    @property
    def window_ms(self) -> int:
        """The window in milliseconds."""
        return parse_ms(self.window)

    def faults(self, path: str) -> Iterator[Fault]:
        """Yield the fault of the window."""
        if not LEAST_MS <= self.window_ms <= MOST_MS:
            message = "ids are remembered for 1s to 30d"
            yield Fault(f"{path}.window", self.window, message, "write a time between them, such as 1h")
