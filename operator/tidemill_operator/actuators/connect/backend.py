"""The interface to Kafka Connect, which the REST client and the Strimzi client implement."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from tidemill_operator.plan.connect.states import LiveConnector


class Backend(Protocol):
    """The connectors of one Connect cluster.

    A failing method raises TidemillError with the reason UNREACHABLE, WAITING, REFUSED or NOT_SUPPORTED.
    """

    def names(self) -> list[str]:
        """List all connector names."""
        ...

    def get(self, name: str) -> LiveConnector | None:
        """Return a connector, or None if it does not exist."""
        ...

    def create(self, name: str, config: Mapping[str, str], *, paused: bool) -> None:
        """Create a connector. A paused connector does not run until `resume` is called."""
        ...

    def configure(self, name: str, config: Mapping[str, str]) -> None:
        """Replace the config of a connector. The new config makes Kafka Connect restart the connector."""
        ...

    def pause(self, name: str) -> None:
        """Pause a connector."""
        ...

    def resume(self, name: str) -> None:
        """Resume a connector."""
        ...

    def restart(self, name: str, *, only_failed: bool = True) -> None:
        """Restart a connector and its tasks. With Strimzi, each call restarts only one of the failed tasks."""
        ...

    def delete(self, name: str) -> None:
        """Delete a connector."""
        ...
