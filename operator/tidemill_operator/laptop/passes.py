"""Runs the passes of `up` in a thread, so that the status stays current while a pass waits for a server."""

from __future__ import annotations

import threading
from collections.abc import Callable

_END_SECONDS = 20.0


class PassRunner:
    """Runs one pass at a time."""

    def __init__(self, run_pass: Callable[[], None]) -> None:
        self._run_pass = run_pass
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    @property
    def idle(self) -> bool:
        """Whether no pass is running."""
        return self._thread is None or not self._thread.is_alive()

    def start(self) -> None:
        """Begin a pass. Call this method only while no pass is running."""
        error, self._error = self._error, None
        if error is not None:
            raise error
        self._thread = threading.Thread(target=self._run, name="tidemill-pass", daemon=True)
        self._thread.start()

    def wait(self, seconds: float = _END_SECONDS) -> None:
        """Wait up to `seconds` for the end of the running pass."""
        if self._thread is not None:
            self._thread.join(seconds)

    def _run(self) -> None:
        try:
            self._run_pass()
        except BaseException as error:
            self._error = error
