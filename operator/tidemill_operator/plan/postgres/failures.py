"""Write messages about failing tasks of processors, and about data that a task left out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tidemill_contract.tables.failures import LOOKUPS
from tidemill_operator.errors import Reason, TidemillError
from tidemill_operator.plan.live import LiveSchema, Owner, TaskFailure

_MAX_LISTED = 8
_TASK_MESSAGES = {
    "close": "windows cannot be closed",
    "live": "changes for live clients cannot be read",
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
        "everything else is published and scanned for anomalies; check the values listed in table _skipped, and"
        " prevent writes to the tables by others"
    ),
}


def failure_errors(schema: LiveSchema | None, owner: Owner) -> list[TidemillError]:
    """Return errors about failing tasks and skipped data. The most severe error comes first."""
    errors: list[TidemillError] = []
    if schema is None or schema.owner != owner:
        return errors
    failures: Sequence[TaskFailure]
    for reason, failures, text in (
        (Reason.HELD_UP, [failure for failure in schema.held_up if failure.duty not in LOOKUPS], _held_up),
        (Reason.WINDOWS_SKIPPED, schema.skipped, _skipped),
    ):
        if failures:
            errors.append(TidemillError(reason, _listed(text(failure) for failure in failures), _REMEDY[reason]))
    return errors


def _held_up(failure: TaskFailure) -> str:
    return f"{_subject(failure)}: {_TASK_MESSAGES.get(failure.duty, failure.duty)}: {failure.reason}"


def _skipped(failure: TaskFailure) -> str:
    more = ", and further cases" if failure.more else ""
    if not failure.window:
        return f"{_subject(failure)}: skipped in {failure.duty}{more}: {failure.reason}"
    group = f", group {failure.group}," if failure.group else ""
    what = f"with null for {', '.join(failure.metrics)}" if failure.metrics else "left out"
    return f"{_subject(failure)}: window {failure.window}{group} {what} in {failure.duty}{more}: {failure.reason}"


def _subject(failure: TaskFailure) -> str:
    return f"aggregation {failure.aggregation}" if failure.aggregation else "the pipeline"


def _listed(texts: Iterable[str]) -> str:
    messages = list(texts)
    more = len(messages) - _MAX_LISTED
    return "; ".join([*messages[:_MAX_LISTED], *([f"and {more} more"] if more > 0 else [])])
