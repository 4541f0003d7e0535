"""Passes of `up` in a thread of their own: while one waits for a server, others go on telling what is."""

from __future__ import annotations

import threading
from collections.abc import Callable

_END_SECONDS = 20.0


class Passes:
    """One at a time.

    Args:
        act: makes a pass; what it raises is raised by the next `start`.
    """

    def __init__(self, act: Callable[[], None]) -> None:
        self._act = act
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    @property
    def idle(self) -> bool:
        """Whether none is under way."""
        return self._thread is None or not self._thread.is_alive()

    def start(self) -> None:
        """Begin one; none may be under way."""
        error, self._error = self._error, None
        if error is not None:
            raise error
        self._thread = threading.Thread(target=self._run, name="tidemill-pass", daemon=True)
        self._thread.start()

    def wait(self, seconds: float = _END_SECONDS) -> None:
        """Let the one under way come to its end, if it does in time."""
        if self._thread is not None:
            self._thread.join(seconds)

    def _run(self) -> None:
        try:
            self._act()
        except BaseException as error:
            self._error = error
