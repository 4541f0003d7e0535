"""Rotates logins: creates new logins, switches once Postgres accepts them, and retires the former logins."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from tidemill_operator.actuators.base import Actuators, PipelineSecrets
from tidemill_operator.outcome import Outcome, Rank
from tidemill_operator.plan.live import Owner
from tidemill_operator.plan.model import Plan

ROTATE = "tidemill.dev/rotate-credentials"


@dataclass
class LoginRotation:
    """The Postgres logins of one pipeline during one pass.

    Attributes:
        rotate: value of the annotation `tidemill.dev/rotate-credentials`. A new value requests new logins.
    """

    actuators: Actuators
    plan: Plan
    owner: Owner
    rotate: str
    adopt: bool
    now: dt.datetime
    confirm: Callable[[], None] = lambda: None
    _secrets: PipelineSecrets | None = field(default=None, repr=False)

    def ensure(self) -> list[Outcome]:
        """Ensure the schema and its roles, and activate new logins as soon as Postgres has them.

        Raises:
            TidemillError: a server does not answer, or a secret has invalid content.
        """
        schema, secrets = self.plan.schema, self.actuators.secrets
        self._secrets = secrets.ensure(
            self.plan.namespace, self.plan.name, writer=schema.writer, reader=schema.reader, rotate=self.rotate
        )
        changed = self._secrets.changed
        outcomes = self._ensure_schema(self._secrets)
        if self._secrets.staged and all(outcome.rank <= Rank.DONE for outcome in outcomes):
            self.confirm()
            self._secrets = secrets.switch(self.plan.namespace, self.plan.name, now=self.now)
            changed += self._secrets.changed
        return [replace(outcome, changed=outcome.changed + changed) for outcome in outcomes]

    def retire(self, running: Iterable[Outcome]) -> list[Outcome]:
        """Retire the former logins, once all workloads have had time to notice the new logins.

        Raises:
            TidemillError: for the same reasons as `ensure`.
        """
        secrets = self._secrets
        if secrets is None or secrets.retire_at is None or self.now < secrets.retire_at:
            return []
        if any(outcome.rank > Rank.DONE for outcome in running):
            return []
        self.confirm()
        self._secrets = self.actuators.secrets.retire(self.plan.namespace, self.plan.name)
        return self._ensure_schema(self._secrets)

    def status(self) -> dict[str, Any]:
        """Return the last rotation for the status, or an empty mapping."""
        secrets = self._secrets
        if secrets is None or not (secrets.completed_rotation or secrets.staged or secrets.retire_at):
            return {}
        phase = "Staged" if secrets.staged else "RollingOut" if secrets.retire_at else "Complete"
        return {"phase": phase} | ({"rotated": secrets.completed_rotation[-256:]} if secrets.completed_rotation else {})

    def _ensure_schema(self, secrets: PipelineSecrets) -> list[Outcome]:
        return self.actuators.postgres.ensure(
            self.plan.schema,
            owner=self.owner,
            secrets=secrets,
            adopt=self.adopt,
            exists=self.actuators.runtime.exists,
        )
