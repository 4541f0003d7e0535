"""The state of a cluster's component, as `hack/cluster status` prints it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Health:
    """The state of one component.

    Attributes:
        well: Whether the component works.
        text: The state in words.
    """

    name: str
    well: bool
    text: str
