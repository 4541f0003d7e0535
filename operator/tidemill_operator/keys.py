"""The key that identifies a pipeline in a cluster."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True)
class Key:
    """The namespace, name and uid of a resource. A resource that is created again has a new uid."""

    namespace: str
    name: str
    uid: str

    @classmethod
    def of(cls, metadata: Mapping[str, str]) -> Self:
        """Read a resource's `metadata`."""
        return cls(metadata["namespace"], metadata["name"], metadata["uid"])

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"
