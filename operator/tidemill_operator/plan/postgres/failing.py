"""Write messages about failing tasks of processors, and about data that a task left out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tidemill_contract.tables.failing import LOOKUPS
from tidemill_operator.errors import Reason, TidemillError
from tidemill_operator.plan.live import Failing, LiveSchema, Owner

_MOST = 8
_DOING = {
    "close": "windows cannot be closed",
    "live": "live changes cannot be read",
    "scan": "closed windows cannot be scanned for anomalies",
    "rescore": "corrected windows cannot be scanned for anomalies",
    "publish": "closed windows cannot be published",
    "corrections": "corrected windows cannot be published",
    "anomalies": "anomalies cannot be published",
    "dead letters": "dead letters cannot be published",
    "forget": "ids that dedupe no longer needs cannot be deleted",
}
_REMEDY = {
    Reason.HELD_UP: (
        "other aggregations continue, and this aggregation is retried: correct the cause, or make a new version of"
        " the aggregation"
    ),
    Reason.WINDOWS_SKIPPED: (
        "everything else is published and scanned; check the faulty rows in the table _skipped, and check that nobody"
        " else writes to the tables"
    ),
}


def failing(schema: LiveSchema | None, owner: Owner) -> list[TidemillError]:
    """Return errors about failing tasks and left-out data, with the most severe error first."""
    told: list[TidemillError] = []
    if schema is None or schema.owner != owner:
        return told
    found: Sequence[Failing]
    for reason, found, text in (
        (Reason.HELD_UP, [one for one in schema.held_up if one.duty not in LOOKUPS], _held_up),
        (Reason.WINDOWS_SKIPPED, schema.skipped, _skipped),
    ):
        if found:
            told.append(TidemillError(reason, _listed(text(one) for one in found), _REMEDY[reason]))
    return told


def _held_up(one: Failing) -> str:
    return f"{_of(one)}: {_DOING.get(one.duty, one.duty)}: {one.reason}"


def _skipped(one: Failing) -> str:
    more = ", and further cases" if one.more else ""
    if not one.window:
        return f"{_of(one)}: skipped in {one.duty}{more}: {one.reason}"
    group = f", group {one.group}," if one.group else ""
    what = f"with null for {', '.join(one.metrics)}" if one.metrics else "left out"
    return f"{_of(one)}: window {one.window}{group} {what} in {one.duty}{more}: {one.reason}"


def _of(one: Failing) -> str:
    return f"aggregation {one.aggregation}" if one.aggregation else "the pipeline"


def _listed(texts: Iterable[str]) -> str:
    found = list(texts)
    more = len(found) - _MOST
    return "; ".join([*found[:_MOST], *([f"and {more} more"] if more > 0 else [])])
