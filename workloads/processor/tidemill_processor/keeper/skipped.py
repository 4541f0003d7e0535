"""Records in the table `_skipped` what could not be read, judged or published, so that nothing is skipped silently."""

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
"""Maximum number of rows in the table; the latest are kept."""
NAMED = 100
"""Maximum number of rows that are written at once; the metric counts all."""


@dataclass(frozen=True)
class Skip:
    """Values, windows or a record that were skipped.

    Attributes:
        reason: why.
        start: start of the window, RFC 3339; None: no window, or an unknown one.
        last: start of the last window, if there are several.
        group: as stable JSON; None: unknown, or several groups.
        metrics: the metrics whose values were skipped; empty: everything was.
    """

    reason: str
    start: str | None = None
    last: str | None = None
    group: str | None = None
    metrics: tuple[str, ...] = ()


def record(connection: psycopg.Connection[object], schema: str, duty: Duty, skips: Sequence[Skip]) -> None:
    """Store what a duty skipped, in the transaction that stores its progress."""
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
