"""The interface that both ways of changing connectors implement."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from tidemill_operator.plan.connect.states import LiveConnector


class Backend(Protocol):
    """The connectors of one Connect cluster.

    Each method raises TidemillError: UNREACHABLE if the server does not answer, WAITING if it is busy, REFUSED if it
    refuses the request, NOT_SUPPORTED if the cluster cannot have connectors.
    """

    def names(self) -> list[str]:
        """Return the names of all connectors, including those that others have created."""
        ...

    def get(self, name: str) -> LiveConnector | None:
        """Return a connector, or None if it does not exist."""
        ...

    def create(self, name: str, config: Mapping[str, str], *, paused: bool) -> None:
        """Create a connector. A paused connector does not run before `resume`."""
        ...

    def configure(self, name: str, config: Mapping[str, str]) -> None:
        """Replace the config of a connector, which restarts it."""
        ...

    def pause(self, name: str) -> None:
        """Ask a connector and its tasks to pause."""
        ...

    def resume(self, name: str) -> None:
        """Resume a paused or stopped connector and its tasks."""
        ...

    def restart(self, name: str, *, only_failed: bool = True) -> None:
        """Restart a connector and its tasks. Strimzi restarts one failed task for each call."""
        ...

    def delete(self, name: str) -> None:
        """Delete a connector, if it exists."""
        ...
