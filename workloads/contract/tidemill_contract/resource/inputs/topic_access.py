"""The interface for checking which topics a pipeline may use."""

from __future__ import annotations

from typing import Protocol


class TopicAccess(Protocol):
    """Decides which topics a pipeline may manage or read."""

    def may_manage(self, topic: str, namespace: str) -> bool: ...  # noqa: D102
    def may_read(self, topic: str) -> bool: ...  # noqa: D102
