"""What a batch is read with besides its records."""

from __future__ import annotations

from dataclasses import dataclass

from tidemill_processor.formats.registry import Registry
from tidemill_processor.lookups.lookups import Lookups


@dataclass(frozen=True)
class SideInputs:
    """The side inputs of a pipeline.

    Attributes:
        registry: the client of the schema registry, or None if the format of the records needs none.
        lookups: the lookups of the pipeline, or None if it has none.
    """

    registry: Registry | None = None
    lookups: Lookups | None = None

    @property
    def ready(self) -> bool:
        """Whether every lookup has been read once."""
        return self.lookups is None or self.lookups.ready

    @property
    def registry_answers(self) -> bool:
        """Whether the registry, if there is one, answered the last request."""
        return self.registry is None or not self.registry.error
