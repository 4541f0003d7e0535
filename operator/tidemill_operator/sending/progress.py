"""Shows on a terminal how much of a file has been sent."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TextIO

_PAUSE_SECONDS = 0.5


class Progress:
    """A line on standard error that is rewritten every half second."""

    def __init__(self, fraction_read: Callable[[], float | None], out: TextIO | None = None) -> None:
        self._fraction_read, self._out = fraction_read, out or sys.stderr
        self._is_shown = self._out.isatty()
        self._began = self._last = time.monotonic()

    def show(self, accepted: int, refused: int, note: str = "") -> None:
        """Show the counts, at most every half second."""
        now = time.monotonic()
        if not self._is_shown or now - self._last < _PAUSE_SECONDS:
            return
        self._last = now
        fraction = self._fraction_read()
        percentage = f"{fraction:4.0%}  " if fraction is not None else ""
        speed = (accepted + refused) / max(now - self._began, 0.001)
        text = f"{percentage}{accepted:,} accepted, {refused:,} refused, {speed:,.0f} per second{note}"
        print(f"\r\x1b[K{text[:110]}", end="", file=self._out, flush=True)

    def end(self) -> None:
        """Clear the line."""
        if self._is_shown:
            print("\r\x1b[K", end="", file=self._out, flush=True)
