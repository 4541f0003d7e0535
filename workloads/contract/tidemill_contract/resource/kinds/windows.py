"""The kinds of windows: tumbling, hopping, session.

Windows with a zone follow the calendar. Windows of weeks, months, quarters or years also follow the calendar.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field, StringConstraints

from tidemill_contract.calendars import Calendar
from tidemill_contract.duration import (
    Duration,
    WindowLength,
    calendar_units,
    format_ms,
    is_calendar,
    min_length_ms,
    parse_ms,
)
from tidemill_contract.grids import Steps
from tidemill_contract.resource.faults import Fault
from tidemill_contract.resource.kinds.base import FaultTexts, Kinds, Member, Model

DEFAULT_MAX_LENGTH = "1d"
MAX_PANES = 3600
MIN_WINDOW_MS = 1000
SESSION_STEP_MS = 1000
"""For sessions, `closed_until` (event time in epoch ms) is a multiple of this number."""

Size = Annotated[
    WindowLength,
    Field(
        description="Length of a window: a duration or a length in calendar units. Calendar units are days, weeks (1w),"
        " months (1mo), quarters (1q) and years (1y).",
        examples=["1m"],
    ),
]
Grace = Annotated[Duration, Field(description="Time for which a window stays open after its end.")]
ZoneName = Annotated[str, StringConstraints(min_length=1, max_length=64)]
_ZONE_DESCRIPTION = (
    "Time zone of the calendar, such as Europe/Oslo. With a zone, lengths must be in days or longer units. Without a"
    " zone, weeks and longer units are in UTC. Without a zone, a day is 24 hours."
)
_OFFSET_DESCRIPTION = (
    "Time added to the starts of windows. The time must be shorter than size and hop. Without an offset,"
    " calendar windows start at midnight. Other windows start at multiples of size (hopping windows: hop), counted from"
    " 1970-01-01 UTC."
)


@dataclass(frozen=True)
class WindowStorage:
    """How the windows of an aggregation are stored.

    Attributes:
        size_ms: the length of a window, or the maximum length of sessions and calendar windows.
        pane_ms: the time that a stored row covers, or the minimum of this time for calendar windows.
        gap_ms: the time without events after which a session ends, or None for other windows.
        panes: the number of stored rows per window. 0 means `size_ms // pane_ms`.
    """

    size_ms: int
    pane_ms: int
    gap_ms: int | None = None
    offset_ms: int = 0
    calendar: Calendar | None = None
    panes: int = 0

    @property
    def grid(self) -> Steps | Calendar:
        """The times at which the stored panes of a window can start."""
        return self.calendar or Steps(self.pane_ms, self.offset_ms)

    @property
    def rows(self) -> int:
        """The number of stored rows per window."""
        return 1 if self.gap_ms is not None else self.panes or self.size_ms // self.pane_ms


class ClockWindow(Model):
    """The base of tumbling and hopping windows."""

    length_member: ClassVar[str] = "size"
    step_member: ClassVar[str] = "size"
    """The member that contains the distance between the starts of windows: `size` or `hop`."""

    type: str
    size: Size
    zone: ZoneName | None = Field(None, description=_ZONE_DESCRIPTION)
    offset: Duration | None = Field(None, description=_OFFSET_DESCRIPTION)

    @property
    def step(self) -> str:
        """The distance between the starts of windows."""
        return self.size

    @property
    def follows_calendar(self) -> bool:
        """Whether windows have the length of calendar units, such as months."""
        return self.zone is not None or is_calendar(self.size) or is_calendar(self.step)

    @property
    def longest(self) -> str:
        """The maximum length of a window."""
        return format_ms(self.storage.size_ms) if self.follows_calendar else self.size

    @property
    def storage(self) -> WindowStorage:
        """How windows are stored. Each row covers the time between the starts of two successive windows."""
        offset_ms = parse_ms(self.offset or "0s")
        if not self.follows_calendar:
            return WindowStorage(parse_ms(self.size), parse_ms(self.step), offset_ms=offset_ms)
        size, step = (Calendar.of(text, self.zone, offset_ms) for text in (self.size, self.step))
        return WindowStorage(size.longest_ms, min_length_ms(self.step), calendar=step, panes=size.count // step.count)

    def faults(self, path: str) -> Iterator[Fault]:
        """Yield a fault for each wrong length or offset."""
        for member, text in {"size": self.size, self.step_member: self.step}.items():
            if self.follows_calendar and calendar_units(text) is None:
                remedy = "use days or longer units, such as 1d, 1w or 1mo" + (", or remove zone" if self.zone else "")
                yield Fault(
                    f"{path}.{member}", text, "is not a number of days, weeks, months, quarters or years", remedy
                )
        offset, step = parse_ms(self.offset or "0s"), min_length_ms(self.step)
        if offset % MIN_WINDOW_MS and offset > MIN_WINDOW_MS:
            yield Fault(f"{path}.offset", self.offset, "has a fraction of a second", "write whole seconds")
        elif offset >= step >= MIN_WINDOW_MS:
            message = f"is not shorter than {self.step_member} {self.step}"
            yield Fault(f"{path}.offset", self.offset, message, "write a shorter time")


class TumblingWindow(ClockWindow):
    """Windows that follow each other without gaps."""

    type: Literal["tumbling"]
    grace: Grace = "0s"


class HoppingWindow(ClockWindow):
    """Windows that overlap."""

    step_member = "hop"

    type: Literal["hopping"]
    hop: WindowLength = Field(
        description="Distance between the starts of windows. The size must be a multiple of this distance.",
        examples=["10s"],
    )
    grace: Grace = "0s"

    @property
    def step(self) -> str:
        """The window's hop."""
        return self.hop

    def faults(self, path: str) -> Iterator[Fault]:
        """Yield a fault for each wrong length or offset.

        The hop must divide the size into at most MAX_PANES parts.
        """
        yield from super().faults(path)
        if not self.follows_calendar:
            size, hop = parse_ms(self.size), parse_ms(self.hop)
            if min(size, hop) < MIN_WINDOW_MS:
                return
        elif (sizes := calendar_units(self.size)) is None or (hops := calendar_units(self.hop)) is None:
            return
        elif sizes[0] != hops[0]:
            remedy = "write size and hop in days or weeks, or both in months, quarters or years"
            yield Fault(f"{path}.hop", self.hop, f"does not divide size {self.size}", remedy)
            return
        else:
            size, hop = sizes[1], hops[1]
        if size % hop:
            yield Fault(f"{path}.hop", self.hop, f"does not divide size {self.size}", "choose a hop that divides size")
        elif size // hop > MAX_PANES:
            remedy = f"make hop longer or size shorter, for at most {MAX_PANES} windows"
            yield Fault(f"{path}.hop", self.hop, f"an event would be in {size // hop} windows", remedy)


class SessionWindow(Model):
    """Windows that end after a gap without events."""

    length_member: ClassVar[str] = "max_length"

    type: Literal["session"]
    gap: Duration = Field(description="Time without events after which a session ends.", examples=["5m"])
    max_length: Duration | None = Field(
        None,
        description="Maximum length of a session. Sessions are cut at multiples of this length, counted from 1970-01-01"
        " UTC. Default: 1d, or gap if gap is longer.",
    )
    grace: Grace = "0s"

    @property
    def longest(self) -> str:
        """The maximum length of a session."""
        return self.max_length or max(DEFAULT_MAX_LENGTH, self.gap, key=parse_ms)

    @property
    def storage(self) -> WindowStorage:
        """How sessions are stored: one row for each session."""
        return WindowStorage(parse_ms(self.longest), SESSION_STEP_MS, parse_ms(self.gap))

    def faults(self, path: str) -> Iterator[Fault]:
        """Yield a fault if the maximum length is shorter than the gap."""
        if self.max_length is not None and 0 < parse_ms(self.max_length) < parse_ms(self.gap):
            message = f"is shorter than gap {self.gap}"
            yield Fault(f"{path}.maxLength", self.max_length, message, "make maxLength longer than gap")


def _missing(kind: str, member: Member) -> tuple[str, str]:
    return f"a {kind} window needs a {member.alias}", f"add {member.alias}, such as {member.alias}: 1h"


def _unsupported(kind: str, member: Member) -> tuple[str, str]:
    return f"a {kind} window takes no {member.alias}", f"remove {member.alias}"


Window = TumblingWindow | HoppingWindow | SessionWindow
WINDOWS: Kinds[Window] = Kinds(
    (TumblingWindow, HoppingWindow, SessionWindow),
    tag="type",
    title="WindowSpec",
    doc="The windows into which event time is divided.",
    tag_description="Kind of window.",
    fault_texts=FaultTexts(missing=_missing, unsupported=_unsupported),
)
