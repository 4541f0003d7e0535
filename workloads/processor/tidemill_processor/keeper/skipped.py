"""What could not be read, judged or published and was passed over: rows of `_skipped`, so that nothing is silent."""

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
"""The table keeps so many, the latest."""
NAMED = 100
"""So many are named each time; of more there is only the number."""


@dataclass(frozen=True)
class Skip:
    """Something that was passed over.

    Attributes:
        reason: why.
        start: of the window, RFC 3339; None: of no window.
        last: of several windows the last one's start.
        group: as stable JSON; None: not known, or of all groups.
        metrics: whose values are missing; empty: everything is.
    """

    reason: str
    start: str | None = None
    last: str | None = None
    group: str | None = None
    metrics: tuple[str, ...] = ()


def record(connection: psycopg.Connection[object], schema: str, duty: Duty, skips: Sequence[Skip]) -> None:
    """Store what a duty passed over, in the transaction in which it moves on."""
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
        "%s of %s passes over %d value(s) or window(s), such as %s of window %s, group %s: %s",
        duty.kind, duty.aggregation or "the pipeline", len(skips), ", ".join(first.metrics) or "all", first.start,
        first.group, first.reason,
    )  # fmt: skip
    metrics.WINDOWS_SKIPPED.labels(duty=duty.kind).inc(len(skips))
