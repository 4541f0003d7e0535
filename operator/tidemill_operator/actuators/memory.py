"""The common base of in-memory actuators for tests."""

from __future__ import annotations

from tidemill_operator.errors import Reason, TidemillError


class MemoryPart:
    """A base for in-memory actuators. Every call raises `failure` unless it is None."""

    def __init__(self) -> None:
        self.writes: list[str] = []
        self.calls: list[str] = []
        self.failure: Exception | None = None

    def unreachable(self, who: str) -> None:
        """Make each call fail as if the server did not answer."""
        self.failure = TidemillError(Reason.UNREACHABLE, f"{who} does not answer")

    def _called(self, what: str) -> None:
        self.calls.append(what)
        if self.failure is not None:
            raise self.failure
