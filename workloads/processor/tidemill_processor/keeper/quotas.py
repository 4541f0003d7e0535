"""Dead letters and anomalies are kept as far as their quota reaches; every one that is not is counted (see `_kept`).

What there is room for is read in the transaction that stores, so no replica goes by what another one knew a while ago.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import psycopg

from tidemill_contract.runtime import PipelineConfig
from tidemill_contract.tables import kept as kept_rows
from tidemill_contract.tables.kept import QUERY, quota_of, read, told
from tidemill_processor import metrics
from tidemill_processor.batch import DeadLetter
from tidemill_processor.database import Database

MAX_BATCH_VALUES = 16 * 1024 * 1024
"""Bytes of values that dead letters of one batch keep: a body of a kilobyte may unpack to ten thousand of them."""
SPARE_SHARE = 8
"""Beyond the quota this part of it more is for dead letters without their value."""
LETTER_BYTES = 300
"""What a row costs with its place in three indexes, besides its value, key and texts."""
BARE_KEY_BYTES = 1024
REPORT_SECONDS = 5.0


@dataclass(frozen=True)
class Fit:
    """What of some dead letters is kept.

    Attributes:
        stored: (dead letter, its bytes), some of them without their value.
        bare, counted: by partition, those without value and those that are not stored at all.
        full: whether the quota was the reason.
    """

    stored: list[tuple[DeadLetter, int]] = field(default_factory=list)
    bare: Counter[int] = field(default_factory=Counter)
    counted: Counter[int] = field(default_factory=Counter)
    full: bool = False


def fit(letters: Iterable[DeadLetter], room: int, spare: int) -> Fit:
    """Choose what is kept where `room` bytes are left, and `spare` more for dead letters without their value."""
    found = Fit()
    values, full = MAX_BATCH_VALUES, False
    for letter in letters:
        size, value = _size(letter), len(letter.value or b"")
        if size <= room and value <= values:
            found.stored.append((letter, size))
            room, values = room - size, values - value
            continue
        full = full or size > room
        bare = _bare(letter, by_quota=size > room)
        if (size := _size(bare)) <= room + spare:
            found.stored.append((bare, size))
            found.bare[letter.partition] += 1
            room -= size
        else:
            found.counted[letter.partition] += 1
    return replace(found, full=full)


def _size(letter: DeadLetter) -> int:
    texts = len(letter.detail or "") + len(letter.field or "") + 8 * len(letter.windows or ())
    return LETTER_BYTES + len(letter.value or b"") + len(letter.key or b"") + texts


def _bare(letter: DeadLetter, *, by_quota: bool) -> DeadLetter:
    why = "spec.deadLetters.quota is used up" if by_quota else f"a batch keeps {MAX_BATCH_VALUES} bytes of values"
    key = letter.key if len(letter.key or b"") <= BARE_KEY_BYTES else None
    return replace(letter, value=None, key=key, detail=f"{letter.detail or letter.reason} (value left out: {why})")


def left(connection: psycopg.Connection[Any], database: Database, kind: str) -> int:
    """Bytes that are left of a table's quota; negative: it takes more."""
    row = connection.execute(kept_rows.held(database.schema), (kind,)).fetchone()
    return database.quotas[kind] - (row[0] if row else 0)


@dataclass(frozen=True)
class Kept:
    """What one transaction adds to a row of `_kept`; see there."""

    rows: int = 0
    bytes: int = 0
    bare: int = 0
    counted: int = 0
    full: bool = False


def note(connection: psycopg.Connection[Any], database: Database, kind: str, place: int, kept: Kept) -> None:
    """Count it, in the transaction that stores."""
    connection.execute(
        kept_rows.add(database.schema),
        (kind, place, kept.rows, kept.bytes, kept.bare, kept.counted, kept.full),
    )


class Report:
    """Tells /metrics and /health what is kept and what is not.

    Attributes:
        texts: by table, what its quota took lately; none: nothing.
    """

    def __init__(self, database: Database, config: PipelineConfig) -> None:
        self._query = QUERY.format(f"{database.schema}._kept")
        self._spec = config.spec
        self._told_at = -REPORT_SECONDS
        self.texts: dict[str, str] = {}

    def run(self, connection: psycopg.Connection[Any]) -> None:
        """Look again, if it is time."""
        if time.monotonic() - self._told_at < REPORT_SECONDS:
            return
        self._told_at = time.monotonic()
        texts = {}
        for kept in read(connection.execute(self._query).fetchall()):
            table = kept.kind.removeprefix("_")
            metrics.KEPT_BYTES.labels(table=table).set(kept.bytes)
            for why in ("bare", "counted", "expired", "evicted"):
                metrics.NOT_KEPT.labels(table=table, why=why).set(getattr(kept, why))
            text, remedy = told(kept, quota_of(self._spec, kept.kind))
            if text:
                texts[table] = f"{text}; {remedy}"
        self.texts = texts
