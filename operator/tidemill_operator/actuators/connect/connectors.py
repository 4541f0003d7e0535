"""Reconcile the connectors of a pipeline.

A connector of a pipeline has two marks. The connector's name has the pipeline's prefix. The connector's config names
the pipeline as owner.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from functools import partial

from tidemill_contract import names
from tidemill_operator.actuators.connect.backend import Backend
from tidemill_operator.actuators.connect.restarts import Restarts
from tidemill_operator.errors import Reason, TidemillError
from tidemill_operator.outcome import Component, Outcome, Rank, done, waiting
from tidemill_operator.plan.connect import states
from tidemill_operator.plan.connect.connectors import OWNER, owner_text
from tidemill_operator.plan.connect.states import LiveConnector
from tidemill_operator.plan.live import Owner
from tidemill_operator.plan.model import Connector

_log = logging.getLogger(__name__)


def failed_outcome(wanted: Connector, error: TidemillError) -> Outcome:
    """Return a failed outcome for a connector, with the message of the error."""
    facts = {"name": wanted.spec_name, "message": str(error)[:1024]}
    return Outcome(Rank.FAILED, Component.CONNECTORS, wanted.name, error.reason, str(error), observed=facts)


class KafkaConnect:
    """The thread-safe actuator for the connectors of one Connect cluster."""

    def __init__(self, backend: Backend, restarts: Restarts | None = None) -> None:
        self._backend = backend
        self._restarts = restarts or Restarts()

    def ensure(
        self,
        connectors: Sequence[Connector],
        *,
        owner: Owner,
        adopt: bool = False,
        changed_secrets: Collection[str] = (),
        keep: Collection[str] = (),
    ) -> list[Outcome]:
        """Create, update or delete a pipeline's connectors, as the plan requires.

        Args:
            connectors: the desired connectors.
            owner: the pipeline.
            adopt: whether to take over connectors of another owner.
            changed_secrets: names of connectors to restart, because their secrets have changed.
            keep: names of connectors that are not deleted, although they are not in `connectors`.

        Raises:
            TidemillError: Connect does not answer.
        """
        live_names = set(self._names(needed=bool(connectors)))
        outcomes = [
            self._catch_errors(wanted, partial(self._ensure_one, wanted, adopt, wanted.name in changed_secrets))
            for wanted in connectors
        ]
        wanted_names = {wanted.name for wanted in connectors}
        return [*outcomes, *self._delete(live_names - wanted_names - set(keep), owner)]

    def observe(self, connectors: Sequence[Connector]) -> list[Outcome]:
        """Return the state of each existing connector, without changing the connectors.

        Raises:
            TidemillError: Connect does not answer.
        """
        return [self._catch_errors(wanted, partial(self._observe_one, wanted)) for wanted in connectors]

    def remove(self, *, owner: Owner) -> list[Outcome]:
        """Delete all connectors that a pipeline owns.

        Raises:
            TidemillError: Connect does not answer, or is busy.
        """
        return self._delete(set(self._names(needed=False)), owner)

    def sweep(self, *, cluster: str, namespace: str, pipeline_uids: Collection[str]) -> None:
        """Delete connectors of pipelines that no longer exist.

        Args:
            cluster: id of the cluster.
            namespace: namespace of the pipelines.
            pipeline_uids: UIDs of the existing pipelines.

        Raises:
            TidemillError: Connect does not answer, or is busy.
        """
        for name in sorted(name for name in self._backend.names() if name.startswith(f"{namespace}.")):
            live = self._backend.get(name)
            owner_path, _, uid = (live.config.get(OWNER, "") if live else "").rpartition("/")
            if owner_path.startswith(f"{cluster}/{namespace}/") and uid not in pipeline_uids:
                self._backend.delete(name)
                _log.info("connector %s deleted, because its pipeline is gone", name)

    def _names(self, *, needed: bool) -> list[str]:
        try:
            return self._backend.names()
        except TidemillError as error:
            if needed or error.reason != Reason.NOT_SUPPORTED:
                raise
            return []

    def _catch_errors(self, wanted: Connector, act: Callable[[], Outcome]) -> Outcome:
        """Return the result of `act`. Errors that concern only the connector are returned as outcomes."""
        try:
            return act()
        except TidemillError as error:
            if error.reason in (Reason.UNREACHABLE, Reason.NOT_SUPPORTED):
                raise
            if error.reason == Reason.WAITING:
                return waiting(Component.CONNECTORS, wanted.name, str(error))
            return failed_outcome(wanted, error)

    def _ensure_one(self, wanted: Connector, adopt: bool, secrets_changed: bool) -> Outcome:
        live = self._backend.get(wanted.name)
        if live is None:
            self._backend.create(wanted.name, wanted.config, paused=wanted.paused)
            self._restarts.forget(wanted.name)
            _log.info("connector %s created", wanted.name)
            return waiting(Component.CONNECTORS, wanted.name, f"connector {wanted.name} starts", changed=1)
        error = None if adopt else states.ownership_error(live, wanted)
        if error is not None:
            return failed_outcome(wanted, error)
        if actions := self._apply_changes(live, wanted, secrets_changed):
            _log.info("connector %s %s", wanted.name, actions)
            return waiting(
                Component.CONNECTORS,
                wanted.name,
                f"connector {wanted.name} {actions}",
                changed=1,
                observed=states.status_item(live, wanted),
                serving=not states.wait_reason(live, wanted),
            )
        return self._state_outcome(live, wanted, restart=not wanted.paused)

    def _apply_changes(self, live: LiveConnector, wanted: Connector, secrets_changed: bool) -> str:
        actions = []
        if states.has_drifted(live, wanted):
            self._backend.configure(wanted.name, wanted.config)
            self._restarts.forget(wanted.name)
            actions.append("gets its config")
        elif secrets_changed:
            self._backend.restart(wanted.name, only_failed=False)
            actions.append("is restarted, because its secrets have changed")
        requested_state = live.requested_state or live.state
        halted = requested_state in (states.PAUSED, states.STOPPED)
        if wanted.paused and not halted and requested_state:
            self._backend.pause(wanted.name)
            actions.append("is paused")
        elif halted and not wanted.paused:
            self._backend.resume(wanted.name)
            actions.append("is resumed")
        return " and ".join(actions)

    def _observe_one(self, wanted: Connector) -> Outcome:
        live = self._backend.get(wanted.name)
        if live is None:
            return waiting(Component.CONNECTORS, wanted.name, f"connector {wanted.name} does not exist")
        if error := states.ownership_error(live, wanted):
            return failed_outcome(wanted, error)
        return self._state_outcome(live, wanted, restart=False)

    def _state_outcome(self, live: LiveConnector, wanted: Connector, *, restart: bool) -> Outcome:
        """Return an outcome with an existing connector's state. `restart` allows the restart of a failed connector."""
        observed = states.status_item(live, wanted)
        if live.refusal:
            return failed_outcome(wanted, TidemillError(Reason.REFUSED, live.refusal, "correct spec.source.connectors"))
        if live.failures and not live.pending and not wanted.paused:
            if restart and self._restarts.record_if_due(wanted.name):
                self._backend.restart(wanted.name)
                _log.warning("connector %s is restarted: %s", wanted.name, "; ".join(live.failures))
            message = f"{'; '.join(live.failures)}; {self._restarts.describe(wanted.name)}"
            return Outcome(
                Rank.FAILED, Component.CONNECTORS, wanted.name, Reason.CONNECTOR_FAILED, message, observed=observed
            )
        waits = states.wait_reason(live, wanted)
        if live.pending or waits:
            # A running connector keeps running while Connect applies a change.
            serving = bool(live.state) and not waits
            return waiting(Component.CONNECTORS, wanted.name, live.pending or waits, observed=observed, serving=serving)
        self._restarts.mark_healthy(wanted.name)
        return done(Component.CONNECTORS, wanted.name, observed=observed)

    def _delete(self, candidates: Collection[str], owner: Owner) -> list[Outcome]:
        outcomes = []
        prefix = names.connector_prefix(owner.namespace, owner.name)
        for name in sorted(name for name in candidates if name.startswith(prefix)):
            live = self._backend.get(name)
            if live is None or live.config.get(OWNER) != owner_text(owner):
                continue
            self._backend.delete(name)
            self._restarts.forget(name)
            _log.info("connector %s deleted", name)
            outcomes.append(done(Component.CONNECTORS, name, changed=1, message=f"connector {name} deleted"))
        return outcomes
