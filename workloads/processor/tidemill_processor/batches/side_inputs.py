"""The other sources from which a batch is read, besides its records."""

from __future__ import annotations

from dataclasses import dataclass

from tidemill_processor.formats.registry import Registry
from tidemill_processor.lookups.lookups import Lookups


@dataclass(frozen=True)
class SideInputs:
    """The side inputs of a pipeline.

    Attributes:
        registry: the client of the schema registry, or None if the record format does not use one.
        lookups: the lookups of the pipeline, or None if it has none.
    """

    registry: Registry | None = None
    lookups: Lookups | None = None

    @property
    def ready(self) -> bool:
        """Whether all lookups have been read at least once."""
        return self.lookups is None or self.lookups.ready

    def begin_turn(self) -> None:
        """Note that a turn of the loop begins."""
        if self.registry is not None:
            self.registry.begin_turn()

    @property
    def registry_answers(self) -> bool:
        """Whether the last request to the registry was answered. True without a registry."""
        return self.registry is None or not self.registry.error
