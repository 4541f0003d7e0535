"""The schema registry and the lookups that a batch needs."""

from __future__ import annotations

from dataclasses import dataclass

from tidemill_processor.formats.registry import Registry
from tidemill_processor.lookups.lookups import Lookups


@dataclass(frozen=True)
class SideInputs:
    """The schema registry and the lookups of a pipeline, or None without a registry or lookups."""

    registry: Registry | None = None
    lookups: Lookups | None = None

    @property
    def ready(self) -> bool:
        """Whether all lookups were read at least once."""
        return self.lookups is None or self.lookups.ready

    def begin_turn(self) -> None:
        """Note that a turn of the loop begins."""
        if self.registry is not None:
            self.registry.begin_turn()

    @property
    def registry_answers(self) -> bool:
        """Whether the registry answered the last request, or true without a registry."""
        return self.registry is None or not self.registry.error
