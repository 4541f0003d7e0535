"""The interface for checking which topics a pipeline may use."""

from __future__ import annotations

from typing import Protocol


class Names(Protocol):
    """Decides which topics a pipeline may manage or read."""

    def own(self, topic: str, namespace: str) -> bool: ...  # noqa: D102
    def readable(self, topic: str) -> bool: ...  # noqa: D102
