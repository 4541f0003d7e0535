"""The kinds of windows: tumbling, hopping, session.

In each kind, `length` is the name of the member with the length of a window, and `cut` says how windows are stored.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from tidemill_contract.duration import Duration, parse_ms
from tidemill_contract.resource.faults import Fault
from tidemill_contract.resource.kinds.base import Kinds, Member, Model, Words

DEFAULT_MAX_LENGTH = "1d"
MAX_PANES = 3600
MIN_WINDOW_MS = 1000
SESSION_STEP_MS = 1000
"""A session may end at any millisecond, but sessions are closed in steps of a second, because each step is a write."""

Size = Annotated[Duration, Field(description="Window length.", examples=["1m"])]
Grace = Annotated[Duration, Field(description="How long after its end a window still takes events.")]


@dataclass(frozen=True)
class Cut:
    """How the windows of an aggregation are stored.

    Attributes:
        size_ms: the length of a window; of sessions the greatest length.
        pane_ms: the length of a stored row. A window consists of whole rows. Sessions are closed in steps of it.
        gap_ms: the silence that ends a session; None: the windows are no sessions.
    """

    size_ms: int
    pane_ms: int
    gap_ms: int | None = None


class TumblingWindow(Model):
    """Windows of the same length, one after the other."""

    length: ClassVar[str] = "size"

    type: Literal["tumbling"]
    size: Size
    grace: Grace = "0s"

    @property
    def longest(self) -> str:
        """The greatest length of a window."""
        return self.size

    @property
    def cut(self) -> Cut:
        """One row per window."""
        return Cut(parse_ms(self.size), parse_ms(self.size))

    def faults(self, _path: str) -> Iterator[Fault]:
        """Yield the faults between members; `_path` is the path of the window."""
        yield from ()


class HoppingWindow(Model):
    """Windows of the same length that overlap."""

    length: ClassVar[str] = "size"

    type: Literal["hopping"]
    size: Size
    hop: Duration = Field(description="Distance between window starts; divides size.", examples=["10s"])
    grace: Grace = "0s"

    @property
    def longest(self) -> str:
        """The greatest length of a window."""
        return self.size

    @property
    def cut(self) -> Cut:
        """One row per hop."""
        return Cut(parse_ms(self.size), parse_ms(self.hop))

    def faults(self, path: str) -> Iterator[Fault]:
        """Yield a fault if the hop does not divide the size, or if a window has too many panes."""
        size, hop = parse_ms(self.size), parse_ms(self.hop)
        if min(size, hop) < MIN_WINDOW_MS:
            return
        if size % hop:
            yield Fault(f"{path}.hop", self.hop, f"does not divide size {self.size}", "choose a hop that does")
        elif size // hop > MAX_PANES:
            remedy = f"at most {MAX_PANES}: make hop longer or size shorter"
            yield Fault(f"{path}.hop", self.hop, f"an event would be in {size // hop} windows", remedy)


class SessionWindow(Model):
    """Windows that end when no event comes for the time of the gap."""

    length: ClassVar[str] = "max_length"

    type: Literal["session"]
    gap: Duration = Field(description="Silence that ends a session.", examples=["5m"])
    max_length: Duration | None = Field(
        None,
        description="Longest session: sessions are cut at its multiples since the epoch. Default: 1d, or gap if that"
        " is longer.",
    )
    grace: Grace = "0s"

    @property
    def longest(self) -> str:
        """The greatest length of a session."""
        return self.max_length or max(DEFAULT_MAX_LENGTH, self.gap, key=parse_ms)

    @property
    def cut(self) -> Cut:
        """One row per session."""
        return Cut(parse_ms(self.longest), SESSION_STEP_MS, parse_ms(self.gap))

    def faults(self, path: str) -> Iterator[Fault]:
        """Yield a fault if the greatest length is shorter than the gap."""
        if self.max_length is not None and 0 < parse_ms(self.max_length) < parse_ms(self.gap):
            message = f"is shorter than gap {self.gap}"
            yield Fault(f"{path}.maxLength", self.max_length, message, "make it longer than gap")


def _missing(kind: str, member: Member) -> tuple[str, str]:
    return f"a {kind} window needs a {member.alias}", f"add one, such as {member.alias}: 1h"


def _foreign(kind: str, _member: Member) -> tuple[str, str]:
    return f"does not belong to a {kind} window", "take it out"


Window = TumblingWindow | HoppingWindow | SessionWindow
WINDOWS: Kinds[Window] = Kinds(
    (TumblingWindow, HoppingWindow, SessionWindow),
    tag="type",
    title="WindowSpec",
    doc="How event time is cut into windows.",
    tag_says="tumbling, hopping or session.",
    words=Words(missing=_missing, foreign=_foreign),
)
