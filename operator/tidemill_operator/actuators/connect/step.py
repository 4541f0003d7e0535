"""Reconciles the connectors of a pipeline, as one step of a reconcile pass."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from tidemill_operator.actuators.base import Actuators, Connectors
from tidemill_operator.errors import Reason, TidemillError
from tidemill_operator.outcome import Component, Outcome
from tidemill_operator.plan.live import Owner
from tidemill_operator.plan.model import Plan


@dataclass(frozen=True)
class ConnectorStep:
    """Reconciles the connectors of one pipeline during one pass.

    Attributes:
        before: components in the pipeline's status before the pass.
    """

    actuators: Actuators
    plan: Plan
    owner: Owner
    adopt: bool
    before: Collection[Component]

    @property
    def components(self) -> tuple[Component, ...]:
        """Return a tuple with `Component.CONNECTORS`, or an empty tuple if the pipeline never had connectors."""
        had_connectors = Component.CONNECTORS in self.before and self.actuators.connect is not None
        return (Component.CONNECTORS,) if self.plan.connectors or had_connectors else ()

    def ensure(self) -> list[Outcome]:
        """Make the connectors match the plan.

        Raises:
            TidemillError: the platform has no Kafka Connect, or Kafka Connect does not answer.
        """
        if not self.components:
            return []
        return require_connect(self.actuators).ensure(self.plan.connectors, owner=self.owner, adopt=self.adopt)


def require_connect(actuators: Actuators) -> Connectors:
    """Return the actuator of Kafka Connect, or raise TidemillError on platforms without Kafka Connect."""
    if actuators.connect is None:
        message = "spec.source.connectors: the platform has no Kafka Connect"
        remedy = "set connect.image, connect.strimzi.cluster or connect.url in the chart"
        raise TidemillError(Reason.NOT_SUPPORTED, message, remedy)
    return actuators.connect
