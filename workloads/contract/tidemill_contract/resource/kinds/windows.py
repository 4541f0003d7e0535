"""How event time is cut into windows: tumbling, hopping, session.

Of each kind `length` is the member that says how long a window is, and `cut` says how its windows are stored.
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
"""Sessions end at any millisecond, but are closed a second at a time: each step is a write."""

Size = Annotated[Duration, Field(description="Window length.", examples=["1m"])]
Grace = Annotated[Duration, Field(description="How long after its end a window still takes events.")]


@dataclass(frozen=True)
class Cut:
    """How the windows of an aggregation are stored.

    Attributes:
        size_ms: how long a window is, of sessions the longest.
        pane_ms: how long a stored row is; a window consists of whole ones. Of sessions, how finely they close.
        gap_ms: the silence that ends a session; None: windows are cut by the clock.
    """

    size_ms: int
    pane_ms: int
    gap_ms: int | None = None


class TumblingWindow(Model):
    """Windows that follow each other."""

    length: ClassVar[str] = "size"

    type: Literal["tumbling"]
    size: Size
    grace: Grace = "0s"

    @property
    def longest(self) -> str:
        """How long a window may be."""
        return self.size

    @property
    def cut(self) -> Cut:
        """A window is a row."""
        return Cut(parse_ms(self.size), parse_ms(self.size))

    def faults(self, _path: str) -> Iterator[Fault]:
        """What is wrong between members; `_path` is the window's."""
        yield from ()


class HoppingWindow(Model):
    """Windows that overlap."""

    length: ClassVar[str] = "size"

    type: Literal["hopping"]
    size: Size
    hop: Duration = Field(description="Distance between window starts; divides size.", examples=["10s"])
    grace: Grace = "0s"

    @property
    def longest(self) -> str:
        """How long a window may be."""
        return self.size

    @property
    def cut(self) -> Cut:
        """A row lasts from one start of a window to the next."""
        return Cut(parse_ms(self.size), parse_ms(self.hop))

    def faults(self, path: str) -> Iterator[Fault]:
        """A window consists of whole panes, and not of too many."""
        size, hop = parse_ms(self.size), parse_ms(self.hop)
        if min(size, hop) < MIN_WINDOW_MS:
            return
        if size % hop:
            yield Fault(f"{path}.hop", self.hop, f"does not divide size {self.size}", "choose a hop that does")
        elif size // hop > MAX_PANES:
            remedy = f"at most {MAX_PANES}: make hop longer or size shorter"
            yield Fault(f"{path}.hop", self.hop, f"an event would be in {size // hop} windows", remedy)


class SessionWindow(Model):
    """Windows that last as long as events come."""

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
        """How long a window may be."""
        return self.max_length or max(DEFAULT_MAX_LENGTH, self.gap, key=parse_ms)

    @property
    def cut(self) -> Cut:
        """A session is a row, as long as it comes to be."""
        return Cut(parse_ms(self.longest), SESSION_STEP_MS, parse_ms(self.gap))

    def faults(self, path: str) -> Iterator[Fault]:
        """A session outlasts a silence."""
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
