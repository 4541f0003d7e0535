"""What is told about one part of a cluster."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Health:
    """One component's.

    Attributes:
        well: whether it does what it is for.
        text: for people.
    """

    name: str
    well: bool
    text: str
