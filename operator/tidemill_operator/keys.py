"""Which pipeline of a cluster is meant: namespace, name and uid."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True)
class Key:
    """A resource; one that was deleted and made anew is another one."""

    namespace: str
    name: str
    uid: str

    @classmethod
    def of(cls, metadata: Mapping[str, str]) -> Self:
        """By the resource's `metadata`."""
        return cls(metadata["namespace"], metadata["name"], metadata["uid"])

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"
