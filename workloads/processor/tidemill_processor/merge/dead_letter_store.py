"""Counts late events, and stores dead letters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import psycopg

from tidemill_contract.duration import format_ms
from tidemill_contract.events.decoder import InvalidEvent, Reason
from tidemill_contract.tables import aggregations, dead_letters
from tidemill_contract.tables.definition import NO_ELEMENT
from tidemill_contract.tables.quotas import DEAD_LETTERS
from tidemill_contract.times import rfc3339_ms
from tidemill_processor.batches.batch import INDEX, TIME, Batch
from tidemill_processor.database import Database
from tidemill_processor.dead_letters import DeadLetter
from tidemill_processor.keeper.quotas import SPARE_SHARE, KeptCounts, add_counts, fit_into_quota, remaining_bytes
from tidemill_processor.merge.aggregate import PANE, missed_windows
from tidemill_processor.merge.merging import MergeTask


def record_late(
    connection: psycopg.Connection[Any], database: Database, batch: Batch, tasks: Sequence[MergeTask]
) -> tuple[list[DeadLetter], dict[tuple[str, str], int]]:
    """Count the late events. Return their dead letters, and their number by (aggregation, policy)."""
    letters: list[DeadLetter] = []
    counts: dict[tuple[str, str], int] = {}
    for task in tasks:
        number, name, policy = task.result.late.height, task.store.name, task.store.spec.late_policy
        if task.result.reopening_count:
            counts[name, policy] = task.result.reopening_count
        if not number:
            continue
        if policy == "reopen":
            policy = "deadLetter"  # the event is too old to reopen its window
        counts[name, policy] = number
        update = aggregations.count_late(database.schema, "late_dropped" if policy == "drop" else "late_dead")
        # The retention can change while the processor runs.
        row = connection.execute(update, (number, task.store.id)).fetchone()
        if policy != "drop":
            letters += _late_dead_letters(batch, task, retention_ms=row[0] if row else 0)
    return letters, counts


def _late_dead_letters(batch: Batch, task: MergeTask, *, retention_ms: int) -> list[DeadLetter]:
    layout, letters = task.store.layout, []
    late = task.result.late.select(INDEX, TIME, PANE)
    closed = layout.final_until(task.closed_until) or 0
    windows = {
        pane: (pane,) if layout.has_sessions else missed_windows(pane, layout, closed) for pane in late[PANE].unique()
    }
    for index, time, pane in late.iter_rows():
        missed = windows[pane]
        verdict = _verdict(task, time, len(missed), retention_ms)
        letters.append(
            batch.dead_letter_for(index, verdict, aggregation=task.store.name, event_time=time, windows=missed[:1000])
        )
    return letters


def _verdict(task: MergeTask, time: int, missed: int, retention_ms: int) -> InvalidEvent:
    closed = task.closed_until or 0
    kept_since = closed - retention_ms
    if time >= kept_since:
        return InvalidEvent(Reason.LATE, None, f"{missed} window(s) were closed before the event arrived")
    detail = (
        f"{rfc3339_ms(time)} is before {rfc3339_ms(kept_since)}: windows are closed until {rfc3339_ms(closed)} and kept"
        f" for {format_ms(retention_ms)}; increase the retention, then run `tidemill replay`"
    )
    return InvalidEvent(Reason.TOO_OLD, None, detail)


def store_dead_letters(
    connection: psycopg.Connection[Any], database: Database, letters: Sequence[DeadLetter], epochs: Mapping[int, int]
) -> None:
    """Store as many of the dead letters as the quota allows."""
    if not letters:
        return
    fitting = fit_into_quota(
        letters, remaining_bytes(connection, database, DEAD_LETTERS), database.quotas[DEAD_LETTERS] // SPARE_SHARE
    )
    stored = _store(connection, database, fitting.stored, epochs) if fitting.stored else {}
    for partition in sorted({letter.partition for letter in letters}):
        rows, size = stored.get(partition, (0, 0))
        bare, counted = fitting.bare[partition], fitting.counted[partition]
        add_counts(connection, database, DEAD_LETTERS, partition, KeptCounts(rows, size, bare, counted, fitting.full))


def _store(
    connection: psycopg.Connection[Any],
    database: Database,
    letters: Sequence[tuple[DeadLetter, int]],
    epochs: Mapping[int, int],
) -> dict[int, tuple[int, int]]:
    rows = [
        (
            epochs[d.partition], d.partition, d.offset, NO_ELEMENT if d.element is None else d.element, d.aggregation,
            d.reason, d.field, d.detail, d.key, d.value, d.value_bytes, d.event_time,
            f"{{{','.join(map(str, d.windows))}}}" if d.windows else None, size,
        )
        for d, size in letters
    ]  # fmt: skip
    values = [list(column) for column in zip(*rows, strict=True)]
    stored = connection.execute(dead_letters.insert(database.schema), values)
    return {partition: (number, size) for partition, number, size in stored}
