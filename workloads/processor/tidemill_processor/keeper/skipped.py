"""Records in the table `_skipped` all data that could not be read, judged or published. Nothing is skipped silently."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import psycopg

from tidemill_contract.tables import failing
from tidemill_processor import metrics
from tidemill_processor.keeper.duties import Duty

log = logging.getLogger(__name__)

KEPT = 1_000
"""The maximum number of rows in the table. The latest rows are kept."""
NAMED = 100
"""The maximum number of skips that one call stores. The metric also counts the skips that are not stored."""


@dataclass(frozen=True)
class Skip:
    """Something that was skipped: values, windows or a record.

    Attributes:
        reason: why it was skipped.
        start: the start of the window in RFC 3339, or None if there is no window or the start is unknown.
        last: the start of the last window, if there are several.
        group: the group as JSON, or None if the group is unknown or there are several groups.
        metrics: the metrics whose values were skipped, empty if the whole window was skipped.
    """

    reason: str
    start: str | None = None
    last: str | None = None
    group: str | None = None
    metrics: tuple[str, ...] = ()


def record(connection: psycopg.Connection[object], schema: str, duty: Duty, skips: Sequence[Skip]) -> None:
    """Store what a duty skipped, in the transaction that stores the duty's progress."""
    if not skips:
        return
    rows = [
        (duty.aggregation, duty.version, duty.kind, s.start, s.last, s.group, list(s.metrics), s.reason)
        for s in skips[:NAMED]
    ]
    connection.cursor().executemany(failing.skip(schema), rows)
    connection.execute(failing.trim(schema, KEPT))
    first = skips[0]
    log.warning(
        "%s of %s skips %d value(s) or window(s), such as %s of window %s, group %s: %s",
        duty.kind, duty.aggregation or "the pipeline", len(skips), ", ".join(first.metrics) or "all", first.start,
        first.group, first.reason,
    )  # fmt: skip
    metrics.WINDOWS_SKIPPED.labels(duty=duty.kind).inc(len(skips))
