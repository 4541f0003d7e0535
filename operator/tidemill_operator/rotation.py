"""The logins of one pass: made before anything uses them, switched once Postgres knows them, retired once nobody does.

Each step is one write that the next pass finds, so a pass that ends anywhere is gone on with.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from tidemill_operator.actuators.base import Actuators, PipelineSecrets
from tidemill_operator.outcome import Outcome, Rank
from tidemill_operator.plan.model import Owner, Plan

ROTATE = "tidemill.dev/rotate-credentials"


@dataclass
class Logins:
    """What one pass does about them.

    Attributes:
        rotate: what asks for a rotation: another text than the last time, or empty.
        now: the wall clock, with a zone.
        confirm: raises if another operator has taken over.
    """

    actuators: Actuators
    plan: Plan
    owner: Owner
    rotate: str
    adopt: bool
    now: dt.datetime
    confirm: Callable[[], None] = lambda: None
    _known: PipelineSecrets | None = field(default=None, repr=False)

    def ensure(self) -> list[Outcome]:
        """The schema and its roles; new logins are put in force as soon as Postgres takes them.

        Raises:
            TidemillError: a server does not answer, or a secret does not hold what it should.
        """
        schema, secrets = self.plan.schema, self.actuators.secrets
        self._known = secrets.ensure(
            self.plan.namespace, self.plan.name, writer=schema.writer, reader=schema.reader, rotate=self.rotate
        )
        changed = self._known.changed
        outcomes = self._tell(self._known)
        if self._known.following and all(outcome.rank <= Rank.DONE for outcome in outcomes):
            self.confirm()
            self._known = secrets.switch(self.plan.namespace, self.plan.name, now=self.now)
            changed += self._known.changed
        return [replace(outcome, changed=outcome.changed + changed) for outcome in outcomes]

    def retire(self, running: Iterable[Outcome]) -> list[Outcome]:
        """Take their login from those that were in force before, if all that runs has had the time to see the new ones.

        Args:
            running: what became of the workloads.

        Raises:
            TidemillError: as `ensure`.
        """
        known = self._known
        if known is None or known.retire_at is None or self.now < known.retire_at:
            return []
        if any(outcome.rank > Rank.DONE for outcome in running):
            return []
        self.confirm()
        self._known = self.actuators.secrets.retire(self.plan.namespace, self.plan.name)
        return self._tell(self._known)

    def status(self) -> dict[str, Any]:
        """For people: what asked for the last rotation, and how far it is; nothing if there has been none."""
        known = self._known
        if known is None or not (known.rotated or known.following or known.retire_at):
            return {}
        phase = "Staged" if known.following else "RollingOut" if known.retire_at else "Complete"
        return {"phase": phase} | ({"rotated": known.rotated[-256:]} if known.rotated else {})

    def _tell(self, logins: PipelineSecrets) -> list[Outcome]:
        return self.actuators.postgres.ensure(
            self.plan.schema,
            owner=self.owner,
            secrets=logins,
            adopt=self.adopt,
            exists=self.actuators.runtime.exists,
        )
