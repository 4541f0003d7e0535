"""The platform's limits for the rules of inputs."""

from __future__ import annotations

from typing import Protocol


class Names(Protocol):
    """Decides which names a pipeline may use."""

    def own(self, topic: str, namespace: str) -> bool: ...  # noqa: D102
    def readable(self, topic: str) -> bool: ...  # noqa: D102
