"""Compute the outcomes of lookups from the read errors that processors store."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tidemill_contract.resource.spec import PipelineSpec
from tidemill_contract.tables.failures import STALE_LOOKUP, UNREAD_LOOKUP
from tidemill_operator.errors import Reason, TidemillError
from tidemill_operator.outcome import Component, Outcome, done, failed, waiting
from tidemill_operator.plan.live import LiveSchema, Owner, TaskFailure


def lookup_outcomes(spec: PipelineSpec, schema: LiveSchema | None, owner: Owner) -> list[Outcome]:
    """Return an outcome for each lookup. The outcome is Done unless a processor could not read the lookup."""
    stored = schema.held_up if schema is not None and schema.owner == owner else ()
    return [_outcome(lookup.name, stored) for lookup in spec.lookups or ()]


def unread_lookups_error(rows: Iterable[tuple[str, str]]) -> TidemillError | None:
    """Return the error about lookups that could not be read, or None."""
    messages = [_unread(name, reason) for name, reason in rows]
    if not messages:
        return None
    return TidemillError(Reason.LOOKUP_UNREAD, "; ".join(messages), "events wait meanwhile, and none is lost")


def _outcome(name: str, held_up: Sequence[TaskFailure]) -> Outcome:
    reasons = {failure.duty: failure.reason for failure in held_up if failure.aggregation == name}
    if UNREAD_LOOKUP in reasons:
        error = unread_lookups_error([(name, reasons[UNREAD_LOOKUP])])
        assert error is not None  # noqa: S101 - there is one lookup
        return failed(Component.LOOKUPS, name, error)
    if STALE_LOOKUP in reasons:
        message = f"lookup {name}: {reasons[STALE_LOOKUP]}"
        return waiting(Component.LOOKUPS, name, message, serving=True, reason=Reason.LOOKUP_STALE)
    return done(Component.LOOKUPS, name)


def _unread(name: str, reason: str) -> str:
    return f"lookup {name} was not read yet: {reason}"
