"""Keeps dead letters and anomalies within their quotas.

The table `_kept` has counters of stored and omitted dead letters and anomalies.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import psycopg

from tidemill_contract.runtime import PipelineConfig
from tidemill_contract.tables import quotas as quota_sql
from tidemill_contract.tables.quotas import USAGE_QUERY, quota_message, quota_of, read_usage
from tidemill_processor import metrics
from tidemill_processor.database import Database
from tidemill_processor.dead_letters import DeadLetter

MAX_BATCH_VALUES = 16 * 1024 * 1024
"""The maximum size in bytes of all values in a batch's dead letters."""
SPARE_SHARE = 8
"""Dead letters whose value is not stored may exceed the quota by an eighth (1 / SPARE_SHARE)."""
LETTER_BYTES = 300
"""The estimated size in bytes of a stored dead letter, without value, key and texts."""
BARE_KEY_BYTES = 1024
REPORT_SECONDS = 5.0


@dataclass(frozen=True)
class QuotaFit:
    """The dead letters of a batch that fit into the quota.

    Attributes:
        stored: the dead letters to store, with their sizes in bytes.
        bare: the number of dead letters that are stored without value, by partition.
        counted: the number of dead letters that are only counted, by partition.
        full: whether the quota was too small for a dead letter.
    """

    stored: list[tuple[DeadLetter, int]] = field(default_factory=list)
    bare: Counter[int] = field(default_factory=Counter)
    counted: Counter[int] = field(default_factory=Counter)
    full: bool = False


def fit_into_quota(letters: Iterable[DeadLetter], room: int, spare: int) -> QuotaFit:
    """Choose which dead letters to store.

    Args:
        letters: the dead letters of a batch.
        room: the remaining quota in bytes.
        spare: the bytes beyond `room` for dead letters that are stored without their values.
    """
    fitted = QuotaFit()
    values, full = MAX_BATCH_VALUES, False
    for letter in letters:
        size, value = _size(letter), len(letter.value or b"")
        if size <= room and value <= values:
            fitted.stored.append((letter, size))
            room, values = room - size, values - value
            continue
        full = full or size > room
        bare = _bare(letter, by_quota=size > room)
        if (size := _size(bare)) <= room + spare:
            fitted.stored.append((bare, size))
            fitted.bare[letter.partition] += 1
            room -= size
        else:
            fitted.counted[letter.partition] += 1
    return replace(fitted, full=full)


def _size(letter: DeadLetter) -> int:
    texts = len(letter.detail or "") + len(letter.field or "") + 8 * len(letter.windows or ())
    return LETTER_BYTES + len(letter.value or b"") + len(letter.key or b"") + texts


def _bare(letter: DeadLetter, *, by_quota: bool) -> DeadLetter:
    why = "spec.deadLetters.quota is used up" if by_quota else f"a batch keeps {MAX_BATCH_VALUES} bytes of values"
    key = letter.key if len(letter.key or b"") <= BARE_KEY_BYTES else None
    return replace(letter, value=None, key=key, detail=f"{letter.detail or letter.reason} (value left out: {why})")


def remaining_bytes(connection: psycopg.Connection[Any], database: Database, kind: str) -> int:
    """Return the remaining bytes of a table's quota, or a negative number if the quota is exceeded."""
    row = connection.execute(quota_sql.stored_bytes(database.schema), (kind,)).fetchone()
    return database.quotas[kind] - (row[0] if row else 0)


@dataclass(frozen=True)
class KeptCounts:
    """The numbers that one transaction adds to a row of `_kept`."""

    rows: int = 0
    bytes: int = 0
    bare: int = 0
    counted: int = 0
    full: bool = False


def add_counts(
    connection: psycopg.Connection[Any], database: Database, kind: str, place: int, counts: KeptCounts
) -> None:
    """Add `counts` to a row of `_kept`. Call this function in the transaction that stores the rows."""
    connection.execute(
        quota_sql.add(database.schema),
        (kind, place, counts.rows, counts.bytes, counts.bare, counts.counted, counts.full),
    )


class QuotaReport:
    """Reports in /metrics and /health the numbers of dead letters and anomalies: stored and not stored."""

    def __init__(self, database: Database, config: PipelineConfig) -> None:
        self._query = USAGE_QUERY.format(f"{database.schema}._kept")
        self._spec = config.spec
        self._reported_at = -REPORT_SECONDS
        self.texts: dict[str, str] = {}

    def run(self, connection: psycopg.Connection[Any]) -> None:
        """Update the metrics and the texts for /health, at most every five seconds."""
        if time.monotonic() - self._reported_at < REPORT_SECONDS:
            return
        self._reported_at = time.monotonic()
        texts = {}
        for usage in read_usage(connection.execute(self._query).fetchall()):
            table = usage.kind.removeprefix("_")
            metrics.KEPT_BYTES.labels(table=table).set(usage.bytes)
            for why in ("bare", "counted", "expired", "evicted"):
                metrics.NOT_KEPT.labels(table=table, why=why).set(getattr(usage, why))
            text, remedy = quota_message(usage, quota_of(self._spec, usage.kind))
            if text:
                texts[table] = f"{text}; {remedy}"
        self.texts = texts
