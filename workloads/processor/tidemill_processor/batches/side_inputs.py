"""The schema registry and the lookups of a pipeline."""

from __future__ import annotations

from dataclasses import dataclass

from tidemill_processor.formats.registry import Registry
from tidemill_processor.lookups.lookups import Lookups


@dataclass(frozen=True)
class SideInputs:
    """A pipeline's schema registry and lookups, each None if the pipeline does not use it."""

    registry: Registry | None = None
    lookups: Lookups | None = None

    @property
    def ready(self) -> bool:
        """Whether all lookups were read at least once."""
        return self.lookups is None or self.lookups.ready

    def begin_round(self) -> None:
        """Start a new time limit for requests to the schema registry."""
        if self.registry is not None:
            self.registry.begin_round()

    @property
    def registry_answers(self) -> bool:
        """Whether the schema registry answers, or is not used."""
        return self.registry is None or not self.registry.error
