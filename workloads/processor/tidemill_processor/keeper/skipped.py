"""Writes to the table `_skipped` which data could not be read, judged or published."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import psycopg

from tidemill_contract.tables import failures
from tidemill_processor import metrics
from tidemill_processor.keeper.duties import Duty

log = logging.getLogger(__name__)

MAX_ROWS = 1_000
MAX_ROWS_PER_CALL = 100


@dataclass(frozen=True)
class Skip:
    """Data (values, windows or a record) that a task of the keeper could not process.

    Attributes:
        start: the start of the first skipped window in RFC 3339, or None if unknown.
        last: the start of the last skipped window, or None if only one window was skipped.
        group: the group as JSON, or None if unknown or if several groups were skipped.
        metrics: the metrics with skipped values, or empty if the whole window was skipped.
    """

    reason: str
    start: str | None = None
    last: str | None = None
    group: str | None = None
    metrics: tuple[str, ...] = ()


def store_skips(connection: psycopg.Connection[object], schema: str, duty: Duty, skips: Sequence[Skip]) -> None:
    """Store what a task skipped. Call this function in the transaction that stores the task's progress."""
    if not skips:
        return
    rows = [
        (duty.aggregation, duty.version, duty.kind, s.start, s.last, s.group, list(s.metrics), s.reason)
        for s in skips[:MAX_ROWS_PER_CALL]
    ]
    connection.cursor().executemany(failures.insert_skipped(schema), rows)
    connection.execute(failures.trim_skipped(schema, MAX_ROWS))
    first = skips[0]
    log.warning(
        "%s of %s skips %d value(s) or window(s), such as %s of window %s, group %s: %s",
        duty.kind, duty.aggregation or "the pipeline", len(skips), ", ".join(first.metrics) or "all", first.start,
        first.group, first.reason,
    )  # fmt: skip
    metrics.WINDOWS_SKIPPED.labels(duty=duty.kind).inc(len(skips))
