"""The common base of in-memory actuators for tests."""

from __future__ import annotations

from tidemill_operator.errors import Reason, TidemillError


class MemoryActuator:
    """A base for in-memory actuators. Every call raises `failure` unless it is None."""

    def __init__(self) -> None:
        self.writes: list[str] = []
        self.calls: list[str] = []
        self.failure: Exception | None = None

    def make_unreachable(self, server: str) -> None:
        """Make each call fail as if the server did not answer."""
        self.failure = TidemillError(Reason.UNREACHABLE, f"{server} does not answer")

    def _record_call(self, call: str) -> None:
        self.calls.append(call)
        if self.failure is not None:
            raise self.failure
