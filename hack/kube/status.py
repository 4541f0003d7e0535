"""The state of one part of a cluster."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Health:
    """The state of one component.

    Attributes:
        well: whether it does what it is for.
        text: for people.
    """

    name: str
    well: bool
    text: str
