"""An in-memory Kafka Connect for tests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from tidemill_operator.errors import Reason, TidemillError
from tidemill_operator.plan.connect import states
from tidemill_operator.plan.connect.states import LiveConnector, LiveTask


class MemoryConnect:
    """An in-memory Kafka Connect, in which every connector has one task."""

    def __init__(self) -> None:
        self.connectors: dict[str, LiveConnector] = {}
        self.writes: list[str] = []
        self.failure: TidemillError | None = None
        self.refused: dict[str, TidemillError] = {}

    def make_unreachable(self) -> None:
        """Make each call fail as if Connect did not answer."""
        self.failure = TidemillError(
            Reason.UNREACHABLE, "Kafka Connect at http://connect:8083 does not answer: refused"
        )

    def put(self, name: str, config: Mapping[str, str], state: str = states.RUNNING) -> None:
        """Create or replace a connector."""
        self.connectors[name] = LiveConnector(name, dict(config), state, (LiveTask(0, state),))

    def fail(self, name: str, trace: str) -> None:
        """Make the connector fail."""
        task = LiveTask(0, states.FAILED, trace)
        self.connectors[name] = replace(self.connectors[name], tasks=(task,))

    def take_writes(self) -> list[str]:
        """Return the recorded writes, and clear the record."""
        writes, self.writes = self.writes, []
        return writes

    def names(self) -> list[str]:
        """List all connector names."""
        self._raise_failure()
        return list(self.connectors)

    def get(self, name: str) -> LiveConnector | None:
        """Return a connector."""
        self._raise_failure()
        return self.connectors.get(name)

    def create(self, name: str, config: Mapping[str, str], *, paused: bool) -> None:
        """Create a connector."""
        self._raise_failure(name)
        self.writes.append(f"create {name}")
        self.put(name, config, states.PAUSED if paused else states.RUNNING)

    def configure(self, name: str, config: Mapping[str, str]) -> None:
        """Replace a connector's config."""
        self._raise_failure(name)
        self.writes.append(f"configure {name}")
        self.connectors[name] = replace(self.connectors[name], config=dict(config))

    def pause(self, name: str) -> None:
        """Pause a connector."""
        self._set(f"pause {name}", name, states.PAUSED)

    def resume(self, name: str) -> None:
        """Resume a connector."""
        self._set(f"resume {name}", name, states.RUNNING)

    def restart(self, name: str, *, only_failed: bool = True) -> None:
        """Restart a connector."""
        self._set(f"restart {name}" if only_failed else f"restart all of {name}", name, states.RUNNING)

    def delete(self, name: str) -> None:
        """Delete a connector."""
        self._raise_failure()
        self.writes.append(f"delete {name}")
        self.connectors.pop(name, None)

    def _set(self, write: str, name: str, state: str) -> None:
        self._raise_failure()
        self.writes.append(write)
        self.put(name, self.connectors[name].config, state)

    def _raise_failure(self, name: str = "") -> None:
        if self.failure is not None:
            raise self.failure
        if name in self.refused:
            raise self.refused[name]
